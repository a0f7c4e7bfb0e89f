# How the libraries were configured, and what it takes to configure llama.cpp without the series alike: `pyselfextend bench` does.

# Cache entries that decide what is compiled, and how.
string(CONCAT PYSELFEXTEND_RECORDED
    "^(GGML_|LLAMA_|CMAKE_BUILD_TYPE$|CMAKE_OSX_|CMAKE_TOOLCHAIN_FILE$|CMAKE_SYSROOT$|CMAKE_INTERPROCEDURAL_OPTIMIZATION"
    "|CMAKE_(SHARED|MODULE)_LINKER_FLAGS|CMAKE_(C|CXX|CUDA|HIP|OBJC)_(COMPILER|COMPILER_LAUNCHER|HOST_COMPILER|ARCHITECTURES|FLAGS.*)$"
    "|CUDAToolkit_ROOT$|Vulkan_|BLAS_|MKL_|ROCM_PATH$|hip_DIR$)")

# Write a JSON object to `file`: options (cache entries by name), compilers (by language), cpu_flags (of the CPU backend).
function(pyselfextend_record_build file)
    get_cmake_property(names CACHE_VARIABLES)
    list(FILTER names INCLUDE REGEX "${PYSELFEXTEND_RECORDED}")
    list(FILTER names EXCLUDE REGEX "_INSTALL_DIR$")
    set(options "{}")
    foreach(name IN LISTS names)
        get_property(type  CACHE ${name} PROPERTY TYPE)
        get_property(value CACHE ${name} PROPERTY VALUE)
        if(NOT type MATCHES "^(INTERNAL|STATIC)$" AND NOT value MATCHES "-NOTFOUND$")
            pyselfextend_json_string("${value}" value)
            string(JSON options SET "${options}" "${name}" "${value}")
        endif()
    endforeach()

    set(compilers "{}")
    foreach(language C CXX)
        pyselfextend_json_string("${CMAKE_${language}_COMPILER_ID} ${CMAKE_${language}_COMPILER_VERSION}" compiler)
        string(JSON compilers SET "${compilers}" ${language} "${compiler}")
    endforeach()

    get_target_property(flags ggml-cpu COMPILE_OPTIONS)
    string(GENEX_STRIP "${flags}" flags)
    list(REMOVE_ITEM flags "")
    list(JOIN flags " " flags)
    pyselfextend_json_string("${flags}" flags)

    set(json "{}")
    string(JSON json SET "${json}" options   "${options}")
    string(JSON json SET "${json}" compilers "${compilers}")
    string(JSON json SET "${json}" cpu_flags "${flags}")
    file(WRITE "${file}" "${json}\n")
endfunction()

function(pyselfextend_json_string text out_var)
    string(REPLACE "\\" "\\\\" text "${text}")
    string(REPLACE "\"" "\\\"" text "${text}")
    set(${out_var} "\"${text}\"" PARENT_SCOPE)
endfunction()

# The record and the scripts of the stock build, laid out as here.
function(pyselfextend_install_stock_scripts record)
    set(destination pyselfextend/native)
    install(FILES "${record}" "${PROJECT_SOURCE_DIR}/native/LLAMA_CPP_PIN" DESTINATION ${destination} COMPONENT pyselfextend)
    install(FILES "${PROJECT_SOURCE_DIR}/native/stock/CMakeLists.txt" DESTINATION ${destination}/stock COMPONENT pyselfextend)
    foreach(script fetch apply compiler libraries options)
        install(FILES "${PROJECT_SOURCE_DIR}/native/cmake/${script}.cmake" DESTINATION ${destination}/cmake COMPONENT pyselfextend)
    endforeach()
endfunction()
