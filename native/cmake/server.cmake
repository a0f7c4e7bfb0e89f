# llama.cpp's server, its page and its terminal chat, on our libraries. Included before llama.cpp is added: its utilities are then built too.

set(LLAMA_BUILD_COMMON ON CACHE BOOL "The server is built on them" FORCE)
set(GGML_RPC      ON  CACHE BOOL "ggml: use RPC: layers of a model on several machines")
set(GGML_RPC_RDMA OFF CACHE BOOL "ggml: RDMA for RPC: off, it would tie the package to libibverbs")
set(LLAMA_OPENSSL OFF CACHE BOOL "HTTPS in the server: off, it would tie the package to one version of OpenSSL")

# The page is made by npm, or elsewhere and given, or left out; it is never downloaded ready-made.
set(PYSELFEXTEND_PAGE_DIR "" CACHE PATH "A page that npm made before, of the same source: upstream/tools/ui/dist of another build folder")
find_program(PYSELFEXTEND_NPM NAMES npm npm.cmd)
if(PYSELFEXTEND_NPM OR PYSELFEXTEND_PAGE_DIR)
    set(page ON)
else()
    set(page OFF)
endif()
option(PYSELFEXTEND_BUILD_PAGE "Build the page of the server, with npm" ${page})
set(LLAMA_BUILD_UI        ${PYSELFEXTEND_BUILD_PAGE} CACHE BOOL "See PYSELFEXTEND_BUILD_PAGE" FORCE)
set(LLAMA_USE_PREBUILT_UI OFF                        CACHE BOOL "See PYSELFEXTEND_BUILD_PAGE" FORCE)
if(PYSELFEXTEND_BUILD_PAGE)
    set(PYSELFEXTEND_HAS_PAGE True)
else()
    message(STATUS "The server is built without its page: install Node.js 20 or later with npm for it, and build anew")
endif()
set(PYSELFEXTEND_BUILT_PAGE "${CMAKE_BINARY_DIR}/upstream/tools/ui/dist")
file(REMOVE_RECURSE "${LLAMA_CPP_DIR}/tools/ui/dist") # llama.cpp takes what is there in place of npm's
if(PYSELFEXTEND_BUILD_PAGE AND PYSELFEXTEND_PAGE_DIR)
    if(NOT EXISTS "${PYSELFEXTEND_PAGE_DIR}/index.html" OR NOT EXISTS "${PYSELFEXTEND_PAGE_DIR}/licenses.md")
        message(FATAL_ERROR "PYSELFEXTEND_PAGE_DIR is ${PYSELFEXTEND_PAGE_DIR}, which is no page built by npm: "
            "it must hold index.html and licenses.md.")
    endif()
    set(PYSELFEXTEND_BUILT_PAGE "${PYSELFEXTEND_PAGE_DIR}")
    file(COPY "${PYSELFEXTEND_PAGE_DIR}/" DESTINATION "${LLAMA_CPP_DIR}/tools/ui/dist")
endif()

# Ours are beside the page's own, where the series names them.
file(COPY native/page/ DESTINATION "${LLAMA_CPP_DIR}/tools/ui/src/lib/self-extend")

# Compile sources of ours, with our warnings, into a target of llama.cpp.
function(pyselfextend_add_to_target target)
    set(objects "llama-self-extend-${target}")
    add_library(${objects} OBJECT ${ARGN})
    set_target_properties(${objects} PROPERTIES POSITION_INDEPENDENT_CODE ON)
    target_compile_features(${objects} PRIVATE cxx_std_17)
    target_include_directories(${objects} PRIVATE "${PROJECT_SOURCE_DIR}/native/include" "${PROJECT_SOURCE_DIR}/native/src")
    # SYSTEM: warnings of upstream headers are upstream's
    target_include_directories(${objects} SYSTEM PRIVATE
        "${LLAMA_CPP_DIR}/common" "${LLAMA_CPP_DIR}/include" "${LLAMA_CPP_DIR}/ggml/include" "${LLAMA_CPP_DIR}/vendor"
        "${LLAMA_CPP_DIR}/tools/mtmd" "${LLAMA_CPP_DIR}/tools/server")
    pyselfextend_warnings(${objects})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)

    # Patched files include our headers.
    target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/native/include" "${PROJECT_SOURCE_DIR}/native/src")
endfunction()

# Add the programs; `libraries_var` becomes the shared libraries that they need.
function(pyselfextend_add_server libraries_var)
    set(binary_dir "${CMAKE_BINARY_DIR}/upstream/tools")
    set(ours "${PROJECT_SOURCE_DIR}")
    set(PROJECT_SOURCE_DIR "${LLAMA_CPP_DIR}") # these directories take themselves for a part of llama.cpp's project
    set(tools ui server cli)
    if(GGML_RPC)
        list(APPEND tools rpc)
    endif()
    set(libraries "")
    foreach(tool IN LISTS tools)
        add_subdirectory("${LLAMA_CPP_DIR}/tools/${tool}" "${binary_dir}/${tool}" EXCLUDE_FROM_ALL)
        pyselfextend_shared_libraries("${LLAMA_CPP_DIR}/tools/${tool}" found)
        list(APPEND libraries ${found})
    endforeach()
    set(PROJECT_SOURCE_DIR "${ours}")

    pyselfextend_add_to_target(llama-cli-impl    native/src/server/llama-self-extend-cli.cpp)
    pyselfextend_add_to_target(llama-common      native/src/server/llama-self-extend-args.cpp
                                                 native/src/server/llama-self-extend-sampling.cpp)
    pyselfextend_add_to_target(server-context    native/src/server/llama-self-extend-end.cpp
                                                 native/src/server/llama-self-extend-server.cpp
                                                 native/src/server/llama-self-extend-slots.cpp)
    pyselfextend_add_to_target(llama-server-impl native/src/server/llama-self-extend-http.cpp)
    set(${libraries_var} "${libraries}" PARENT_SCOPE)
endfunction()

# The programs lie beside the libraries' folder.
function(pyselfextend_install_server)
    set(programs llama-server llama-cli)
    if(GGML_RPC)
        list(APPEND programs ggml-rpc-server)
    endif()
    foreach(program IN LISTS programs)
        pyselfextend_set_rpath(${program} . ../lib)
    endforeach()
    install(TARGETS ${programs} RUNTIME DESTINATION pyselfextend/bin COMPONENT pyselfextend)
    if(PYSELFEXTEND_BUILD_PAGE) # of what npm put into the page, listed by Vite; the server has it at /licenses.md
        install(FILES "${PYSELFEXTEND_BUILT_PAGE}/licenses.md" DESTINATION pyselfextend/bin
            RENAME page-licenses.md COMPONENT pyselfextend)
    endif()

    # llama.cpp goes on without a page where npm fails.
    add_custom_target(pyselfextend-page COMMAND "${CMAKE_COMMAND}" -D "UI_H=${CMAKE_BINARY_DIR}/upstream/tools/ui/ui.h"
        -D "WANTED=${PYSELFEXTEND_BUILD_PAGE}" -P "${PROJECT_SOURCE_DIR}/native/cmake/check-page.cmake" VERBATIM)
    add_dependencies(pyselfextend-page llama-ui-assets)
    add_custom_target(pyselfextend-server ALL DEPENDS ${programs})
    add_dependencies(pyselfextend-server pyselfextend-page)
endfunction()
