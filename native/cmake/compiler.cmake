# What compilers are known to get wrong in the pinned source.

# GCC 11 to 13 drops what is written to a tile configuration before _tile_loadconfig() reads it (GCC bug 114098, mended in
# 11.5, 12.4 and 13.3): ggml's AMX code then crashes, or not, by what was on the stack.
function(pyselfextend_avoid_compiler_bugs)
    if(NOT TARGET ggml-cpu OR NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU" OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
        return()
    endif()
    foreach(mended 11.5 12.4 13.3)
        string(REGEX MATCH "^[0-9]+" first "${mended}")
        if(CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL first AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS mended)
            target_compile_options(ggml-cpu PRIVATE -mno-amx-int8)
        endif()
    endforeach()
endfunction()
