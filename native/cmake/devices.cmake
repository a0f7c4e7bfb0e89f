# The fused attention of devices, compiled as a part of their backends.

# Add sources of ours to a backend's target, to be compiled as its own `like` is. Its own headers are upstream's: no warnings from them.
function(pyselfextend_add_to_backend target like)
    get_filename_component(directory "${like}" DIRECTORY)
    target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/native/src")
    target_include_directories(${target} SYSTEM PRIVATE "${directory}")
    target_sources(${target} PRIVATE ${ARGN})

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
