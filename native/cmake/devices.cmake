# The fused attention on devices: sources of ours in ggml's backends, which the series calls from there.

# Add sources to a backend's target, to be compiled as its own `like` is.
function(pyselfextend_add_to_backend target like)
    get_filename_component(directory "${like}" DIRECTORY)
    target_sources(${target} PRIVATE ${ARGN})
    target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/native/src" "${CMAKE_BINARY_DIR}/generated")
    target_include_directories(${target} SYSTEM PRIVATE "${directory}") # warnings of upstream headers are upstream's

    # a language or flags of its own (HIP, MUSA)
    foreach(property LANGUAGE COMPILE_FLAGS)
        get_source_file_property(value "${like}" TARGET_DIRECTORY ${target} ${property})
        if(value)
            set_source_files_properties(${ARGN} TARGET_DIRECTORY ${target} PROPERTIES ${property} "${value}")
        endif()
    endforeach()
endfunction()

# ggml builds its CUDA sources as any of these. Instances of the tensor-core kernel are files of their own, compiled side by side.
function(pyselfextend_add_cuda)
    foreach(target ggml-cuda ggml-hip ggml-musa)
        if(NOT TARGET ${target})
            continue()
        endif()

        set(sources "${PROJECT_SOURCE_DIR}/native/src/attention/cuda/llama-self-extend-attn-cuda.cu")
        foreach(D 64 80 96 112 128 256)
            foreach(NCOLS2 1 2 4 8)
                set(instance "${CMAKE_BINARY_DIR}/generated/cuda/mma-${D}-${NCOLS2}.cu")
                configure_file(native/src/attention/cuda/mma-instance.cu.in "${instance}" @ONLY)
                list(APPEND sources "${instance}")
            endforeach()
        endforeach()

        pyselfextend_add_to_backend(${target} "${LLAMA_CPP_DIR}/ggml/src/ggml-cuda/ggml-cuda.cu" ${sources})
    endforeach()
endfunction()

function(pyselfextend_add_vulkan)
    if(NOT TARGET ggml-vulkan)
        return()
    endif()

    set(shader "${PROJECT_SOURCE_DIR}/native/src/attention/vulkan/merge.comp")
    set(spirv  "${CMAKE_BINARY_DIR}/generated/llama-self-extend-attn-merge.spv.inc")
    # The compiler, the target and -O are those of ggml's shaders.
    add_custom_command(OUTPUT "${spirv}" DEPENDS "${shader}" VERBATIM COMMENT "Compiling merge.comp"
        COMMAND "${Vulkan_GLSLC_EXECUTABLE}" -fshader-stage=compute --target-env=vulkan1.2 -O -mfmt=num "${shader}" -o "${spirv}")
    add_custom_target(llama-self-extend-attn-merge DEPENDS "${spirv}")
    add_dependencies(ggml-vulkan llama-self-extend-attn-merge)

    set(sources "${PROJECT_SOURCE_DIR}/native/src/attention/vulkan/llama-self-extend-attn-vulkan.cpp"
        "${PROJECT_SOURCE_DIR}/native/src/attention/vulkan/parts.cpp")
    pyselfextend_add_to_backend(ggml-vulkan "${LLAMA_CPP_DIR}/ggml/src/ggml-vulkan/ggml-vulkan.cpp" ${sources})
    if(PYSELFEXTEND_WERROR AND NOT MSVC)
        set_property(SOURCE ${sources} TARGET_DIRECTORY ggml-vulkan APPEND PROPERTY COMPILE_OPTIONS -Werror)
    endif()
endfunction()

# A worker on another machine that is gone without a word is noticed.
function(pyselfextend_add_rpc)
    if(TARGET ggml-rpc)
        target_include_directories(ggml-rpc PRIVATE "${PROJECT_SOURCE_DIR}/native/src")
    endif()
endfunction()
