# Our own sources, compiled beside libllama's and linked into it.

function(pyselfextend_warnings target)
    if(MSVC)
        target_compile_options(${target} PRIVATE /W3 $<$<BOOL:${PYSELFEXTEND_WERROR}>:/WX>)
    else()
        target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wcast-qual -Wmissing-declarations
            $<$<BOOL:${PYSELFEXTEND_WERROR}>:-Werror>)
    endif()
endfunction()

# An object library, so that our sources stay out of llama's unity build and have flags of their own.
function(pyselfextend_add_objects target)
    add_library(${target} OBJECT ${ARGN})
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
    target_compile_features(${target} PRIVATE cxx_std_17)
    target_include_directories(${target} PRIVATE
        "${PROJECT_SOURCE_DIR}/native/include" "${PROJECT_SOURCE_DIR}/native/src"
        "${CMAKE_BINARY_DIR}/generated")
    # SYSTEM: warnings of upstream headers are upstream's
    target_include_directories(${target} SYSTEM PRIVATE
        "${LLAMA_CPP_DIR}/src" "${LLAMA_CPP_DIR}/include" "${LLAMA_CPP_DIR}/ggml/include")
    pyselfextend_warnings(${target})
    target_sources(llama PRIVATE $<TARGET_OBJECTS:${target}>)
endfunction()

# The engine proper sees what libllama's sources see.
function(pyselfextend_add_engine)
    pyselfextend_add_objects(llama-self-extend ${ARGN})
    target_compile_definitions(llama-self-extend PRIVATE
        $<TARGET_PROPERTY:llama,COMPILE_DEFINITIONS> $<TARGET_PROPERTY:ggml,INTERFACE_COMPILE_DEFINITIONS>)

    # Patched files include our headers.
    target_include_directories(llama PRIVATE
        "${PROJECT_SOURCE_DIR}/native/include" "${PROJECT_SOURCE_DIR}/native/src")
endfunction()

# The CPU kernel sees what the CPU backend's sources see, and is compiled with its instructions. Those of ops-avx2.cpp and
# ops-avx512.cpp are for machines that have more: which one runs is asked of the processor.
function(pyselfextend_add_kernel)
    pyselfextend_add_objects(llama-self-extend-kernel ${ARGN})
    target_compile_options(llama-self-extend-kernel PRIVATE $<TARGET_PROPERTY:ggml-cpu,COMPILE_OPTIONS>)
    # A product and a sum become one instruction where the source says so, or the same row would differ with its place in a tile.
    if(NOT MSVC)
        target_compile_options(llama-self-extend-kernel PRIVATE -ffp-contract=off)
    endif()
    # GCC 12 takes its own AVX-512 intrinsics for uses of uninitialized values (GCC bug 105593).
    target_compile_options(llama-self-extend-kernel PRIVATE
        $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized> $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized>)
    target_include_directories(llama-self-extend-kernel SYSTEM PRIVATE "${LLAMA_CPP_DIR}/ggml/src")
    target_link_libraries(llama PRIVATE ggml-cpu)

    set(processor "${CMAKE_SYSTEM_PROCESSOR}")
    if(CMAKE_OSX_ARCHITECTURES)
        set(processor "${CMAKE_OSX_ARCHITECTURES}")
    endif()
    if(processor MATCHES "^(x86_64|AMD64|amd64|i[3-6]86)$")
        if(MSVC)
            set(avx2   /arch:AVX2)
            set(avx512 /arch:AVX512)
        else()
            set(avx2   -mavx2 -mfma -mf16c)
            set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
        endif()
        foreach(set avx2 avx512)
            set_property(SOURCE native/src/attention/cpu/ops-${set}.cpp APPEND PROPERTY COMPILE_OPTIONS ${${set}})
        endforeach()
    endif()
endfunction()
