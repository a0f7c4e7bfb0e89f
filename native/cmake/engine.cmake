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
        "${PROJECT_SOURCE_DIR}/native/include" "${PROJECT_SOURCE_DIR}/native/src" "${CMAKE_BINARY_DIR}/generated")
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
    target_include_directories(llama PRIVATE "${PROJECT_SOURCE_DIR}/native/include" "${PROJECT_SOURCE_DIR}/native/src")
endfunction()

# The CPU kernel sees what the CPU backend's sources see: its headers choose the vector code by the instruction set of the compile command.
function(pyselfextend_add_kernel)
    pyselfextend_add_objects(llama-self-extend-kernel ${ARGN})
    target_compile_options(llama-self-extend-kernel PRIVATE $<TARGET_PROPERTY:ggml-cpu,COMPILE_OPTIONS>)
    # GCC 12 takes its own AVX-512 intrinsics for uses of uninitialized values (GCC bug 105593).
    target_compile_options(llama-self-extend-kernel PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
    # GGML_BACKEND_BUILD would export the backend's functions again.
    target_compile_definitions(llama-self-extend-kernel PRIVATE
        $<FILTER:$<TARGET_PROPERTY:ggml-cpu,COMPILE_DEFINITIONS>,EXCLUDE,^GGML_BACKEND_BUILD$> LLAMA_SHARED LLAMA_BUILD)
    target_include_directories(llama-self-extend-kernel SYSTEM PRIVATE
        "${LLAMA_CPP_DIR}/ggml/src" "${LLAMA_CPP_DIR}/ggml/src/ggml-cpu")
    target_link_libraries(llama PRIVATE ggml-cpu)
endfunction()
