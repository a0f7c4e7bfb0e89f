# ggml's CUDA attention and ours compiled for the host, for a test: see native/tests/cuda-host/.

# What a compiler of C++ cannot read is written as calls of tests/cuda-host/: launches, dynamic shared memory, PTX.
function(pyselfextend_translate_cuda from to)
    file(READ "${from}" source)
    string(REGEX REPLACE "([A-Za-z0-9_]+(<[A-Za-z0-9_, ]*>)?)<<<([^;]*)>>>"
        "cuda_host_launch(\\3, [&](auto... args) { \\1(args...); })" source "${source}")
    string(REGEX REPLACE "extern __shared__ ([a-z0-9_]+) ([A-Za-z_]+)\\[\\];"
        "\\1 * \\2 = (\\1 *) cuda_host_dynamic_shared;" source "${source}")
    string(REGEX REPLACE "asm( volatile)?\\(" "cuda_host_ptx(" source "${source}")
    string(REGEX REPLACE "(: )?: \"[=+]*[rlf]\"\\(" ", (" source "${source}")
    string(REGEX REPLACE "\"[=+]*[rlf]\"\\(" "(" source "${source}")
    file(CONFIGURE OUTPUT "${to}" CONTENT "${source}" @ONLY) # written if it differs
endfunction()

# One program for each architecture that code is compiled for, as nvcc would: a value of __CUDA_ARCH__. Five minutes of one core:
# they are built by a target of this name alone.
function(pyselfextend_add_cuda_host name)
    set(host "${PROJECT_SOURCE_DIR}/native/tests/cuda-host")
    set(own  "${PROJECT_SOURCE_DIR}/native/src/attention/cuda")
    set(from "${LLAMA_CPP_DIR}/ggml/src/ggml-cuda")
    set(to   "${CMAKE_BINARY_DIR}/generated/cuda-host")

    # ggml's kernels that are run: for the heads that our node takes, and the types that ggml compiles by default
    set(pairs F16-F16 BF16-BF16 Q4_0-Q4_0 Q8_0-Q8_0)
    set(run   "vec-instance-(f16-f16|bf16-bf16|q4_0-q4_0|q8_0-q8_0)|tile-instance-dkq(64|80|96|112|128|256)-.*")
    # Of the others the code for the host: ours is in the place of ggml's own tensor-core kernel.
    set(named "mma-f16-instance-.*|tile-instance-.*")

    set(kernels "${to}/fattn-tile.cu" "${to}/convert.cu" "${host}/fattn-choice.cu")
    set(names "")
    file(GLOB files RELATIVE "${from}" "${from}/*.cuh" "${from}/vendors/cuda.h" "${from}/template-instances/fattn-*.cu")
    foreach(file IN LISTS files ITEMS fattn.cu fattn-tile.cu convert.cu)
        pyselfextend_translate_cuda("${from}/${file}" "${to}/${file}")
        if(file MATCHES "/fattn-(${run})\\.cu$")
            list(APPEND kernels "${to}/${file}")
        elseif(file MATCHES "/fattn-(${named})\\.cu$")
            list(APPEND names "${to}/${file}")
        endif()
    endforeach()

    list(APPEND kernels "${own}/llama-self-extend-attn-cuda.cu")
    foreach(D 64 80 96 112 128 256)
        foreach(NCOLS2 1 2 4 8)
            configure_file("${own}/mma-instance.cu.in" "${to}/mma-${D}-${NCOLS2}.cu" @ONLY)
            list(APPEND kernels "${to}/mma-${D}-${NCOLS2}.cu")
        endforeach()
    endforeach()
    set_source_files_properties(${kernels} ${names} PROPERTIES LANGUAGE CXX)

    set(definitions GGML_CUDA_NO_VMM)
    foreach(K F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0)
        foreach(V F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0)
            list(APPEND definitions "GGML_CUDA_FA_${K}_${V}=$<IN_LIST:${K}-${V},${pairs}>")
        endforeach()
    endforeach()

    function(compile target)
        target_compile_features(${target} PRIVATE cxx_std_17)
        target_compile_definitions(${target} PRIVATE ${definitions} ${ARGN})
        # Compiling takes longer than running; and from -O2 on GCC relies on types, which kernels do not keep to. No checks of
        # setjmp: it is how threads are switched.
        target_compile_options(${target} PRIVATE -O1 -U_FORTIFY_SOURCE)
        target_include_directories(${target} PRIVATE "${host}" "${PROJECT_SOURCE_DIR}/native/src")
        target_include_directories(${target} SYSTEM PRIVATE "${to}" "${LLAMA_CPP_DIR}/ggml/include" "${LLAMA_CPP_DIR}/ggml/src")
    endfunction()

    add_library(${name}-names OBJECT EXCLUDE_FROM_ALL ${names})
    compile(${name}-names GGML_CUDA_NO_FA)
    target_compile_options(${name}-names PRIVATE -w)

    foreach(arch IN LISTS ARGN)
        add_library(${name}-${arch}-kernels OBJECT EXCLUDE_FROM_ALL ${kernels})
        compile(${name}-${arch}-kernels __CUDA_ARCH__=${arch})
        target_compile_options(${name}-${arch}-kernels PRIVATE -w) # of sources for nvcc

        add_executable(${name}-${arch} EXCLUDE_FROM_ALL "${PROJECT_SOURCE_DIR}/native/tests/${name}.cpp" "${host}/cuda-host.cpp"
            "${PROJECT_SOURCE_DIR}/native/src/attention/llama-self-extend-attn.cpp"
            $<TARGET_OBJECTS:${name}-${arch}-kernels> $<TARGET_OBJECTS:${name}-names>)
        compile(${name}-${arch} __CUDA_ARCH__=${arch})
        pyselfextend_warnings(${name}-${arch})
        target_link_libraries(${name}-${arch} PRIVATE ggml)
        add_test(NAME ${name}-${arch} COMMAND ${name}-${arch})
        add_dependencies(${name} ${name}-${arch})
    endforeach()
endfunction()
