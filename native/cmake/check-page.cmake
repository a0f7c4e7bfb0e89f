# Whether the page was built that was asked for: cmake -D UI_H=<generated header> -D WANTED=<bool> -P check-page.cmake

file(READ "${UI_H}" header)
if(WANTED AND NOT header MATCHES "LLAMA_UI_HAS_ASSETS 1")
    message(FATAL_ERROR "npm could not build the page of the server, as is said above. "
        "PYSELFEXTEND_BUILD_PAGE=OFF leaves the page out, PYSELFEXTEND_BUILD_SERVER=OFF the server.")
endif()
