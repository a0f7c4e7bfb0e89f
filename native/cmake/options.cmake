# What we ask of llama.cpp's own build. Everything else (-DGGML_CUDA=on, -DGGML_VULKAN=on, ...) passes through as given.

foreach(option GGML_BACKEND_DL GGML_CPU_ALL_VARIANTS GGML_STATIC LLAMA_USE_SYSTEM_GGML)
    if(${option})
        message(FATAL_ERROR "${option} is not supported: the attention kernel links the one CPU backend that is built here. "
            "Leave it off.")
    endif()
endforeach()
if(DEFINED GGML_CPU AND NOT GGML_CPU)
    message(FATAL_ERROR "GGML_CPU=OFF is not supported: the attention kernel is part of the CPU backend's work. Leave it on.")
endif()

if(NOT MSVC AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

set(BUILD_SHARED_LIBS ON CACHE BOOL "Build shared libraries: llama_cpp loads libllama with ctypes" FORCE)
foreach(part APP TESTS EXAMPLES TOOLS SERVER)
    set(LLAMA_BUILD_${part} OFF CACHE BOOL "Not part of the package" FORCE)
endforeach()
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "Only the server needs it" FORCE)
set(LLAMA_BUILD_MTMD ON CACHE BOOL "llama_cpp's multimodal chat handlers load libmtmd" FORCE)

# As llama-cpp-python sets them, but as defaults.
if(APPLE)
    if(NOT CMAKE_OSX_ARCHITECTURES)
        set(CMAKE_OSX_ARCHITECTURES "${CMAKE_HOST_SYSTEM_PROCESSOR}" CACHE STRING "Build architecture for macOS" FORCE)
    endif()
    if(CMAKE_OSX_ARCHITECTURES STREQUAL "x86_64")
        foreach(feature AVX AVX2 FMA F16C)
            set(GGML_${feature} OFF CACHE BOOL "ggml: enable ${feature}")
        endforeach()
    endif()
    set(GGML_METAL               ON CACHE BOOL "ggml: enable Metal")
    set(GGML_METAL_EMBED_LIBRARY ON CACHE BOOL "ggml: embed metal library")
endif()

# Neither llama.cpp nor ggml shall take our repository's commit for its own: the objects would change with every commit.
set(ENV{GIT_CEILING_DIRECTORIES} "${CMAKE_BINARY_DIR}")
