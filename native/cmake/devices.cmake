# The fused attention on devices: sources of ours in ggml's backends, which the series calls from there.

# Adds a source to a backend, with the backend's own options and our rule about warnings.
function(pyselfextend_add_to_backend target source)
    get_target_property(directory ${target} SOURCE_DIR)
    target_sources(${target} PRIVATE "${PROJECT_SOURCE_DIR}/native/src/${source}")
    target_include_directories(${target} PRIVATE "${directory}" "${PROJECT_SOURCE_DIR}/native/src" "${CMAKE_BINARY_DIR}/generated")
    if(PYSELFEXTEND_WERROR AND NOT MSVC)
        set_property(SOURCE "${PROJECT_SOURCE_DIR}/native/src/${source}" TARGET_DIRECTORY ${target} APPEND PROPERTY COMPILE_OPTIONS -Werror)
    endif()
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
    pyselfextend_add_to_backend(ggml-vulkan attention/vulkan/llama-self-extend-attn-vulkan.cpp)
endfunction()
