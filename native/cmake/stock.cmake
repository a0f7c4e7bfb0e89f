# libllama of the same source without the series, for the tests that ask for bit-identical output. Never installed.
#
# Of libllama the series changes .cpp files only, so every other object of it is what a build without the series would make:
# those are linked again, and the changed files are compiled once more from the unchanged tree. What it changes of the
# backends of devices is in libraries of their own, which both link; the server is none of it.

function(pyselfextend_add_stock)
    set(excluded "")
    set(sources "")
    foreach(patch IN LISTS ARGN)
        llama_cpp_patched_files("${patch}" files)
        foreach(file IN LISTS files)
            if(file MATCHES "^(ggml/src/ggml-(cuda|rpc|vulkan)|common|tools)/")
                continue()
            endif()
            if(NOT file MATCHES "^src/[^/]+\\.cpp$")
                message(FATAL_ERROR "PYSELFEXTEND_BUILD_STOCK needs a series that changes src/*.cpp only, "
                    "apart from the backends of devices and the server; ${patch} changes ${file}.")
            endif()
            get_filename_component(name "${file}" NAME)
            string(REPLACE "." "\\." name "${name}")
            list(APPEND excluded "/${name}\\.o(bj)?$")
            list(APPEND sources "${LLAMA_CPP_STOCK_DIR}/${file}")
        endforeach()
    endforeach()
    list(REMOVE_DUPLICATES excluded)
    list(REMOVE_DUPLICATES sources)
    list(JOIN excluded "|" excluded)
    if(NOT sources)
        set(excluded "^$") # an empty series: the two libraries differ in our sources only
    endif()

    add_library(llama-stock SHARED $<FILTER:$<TARGET_OBJECTS:llama>,EXCLUDE,${excluded}> ${sources})
    add_dependencies(llama-stock llama)
    set_target_properties(llama-stock PROPERTIES
        OUTPUT_NAME              llama
        LINKER_LANGUAGE          CXX
        LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/libllama-stock"
        RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/libllama-stock")
    target_compile_features(llama-stock PRIVATE cxx_std_17)
    target_compile_definitions(llama-stock PRIVATE $<TARGET_PROPERTY:llama,COMPILE_DEFINITIONS>)
    target_compile_options(llama-stock PRIVATE $<TARGET_PROPERTY:llama,COMPILE_OPTIONS>)
    target_include_directories(llama-stock PRIVATE
        "${LLAMA_CPP_STOCK_DIR}/src" "${LLAMA_CPP_STOCK_DIR}/include" $<TARGET_PROPERTY:llama,BINARY_DIR>)
    target_link_libraries(llama-stock PRIVATE ggml)
    pyselfextend_set_rpath(llama-stock ../bin)
endfunction()
