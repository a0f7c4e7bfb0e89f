# The pinned sdist of llama-cpp-python: find it in the cache or download it with pip, and verify it each time.
#
# As a script, for the Makefile and the tests: cmake -D PIN=<file> [-D CACHE_DIR=<dir>] [-D PYTHON=<python>] -P fetch.cmake
# writes the archive's path to standard output.

# The pin is one pip requirement with its hash, so that pip checks the hash before it runs anything of the sdist.
function(llama_cpp_read_pin pin version_var sha256_var)
    file(STRINGS "${pin}" lines REGEX "^[^#]")
    if(NOT lines MATCHES "^llama-cpp-python==([0-9.]+) --hash=sha256:([0-9a-f]+)$")
        message(FATAL_ERROR "${pin} must hold one line `llama-cpp-python==VERSION --hash=sha256:DIGEST`, it holds `${lines}`.")
    endif()
    set(${version_var} "${CMAKE_MATCH_1}" PARENT_SCOPE)
    set(${sha256_var}  "${CMAKE_MATCH_2}" PARENT_SCOPE)
endfunction()

# Stop unless the archive is the pinned one.
function(llama_cpp_verify archive sha256 pin)
    file(SHA256 "${archive}" actual)
    if(NOT actual STREQUAL sha256)
        message(FATAL_ERROR
            "${archive} is not the pinned sdist of llama-cpp-python: its sha256 is\n  ${actual}\nwhere ${pin} names\n  ${sha256}")
    endif()
endfunction()

# PYSELFEXTEND_CACHE_DIR (environment), else the platform's cache directory, else `fallback`.
function(llama_cpp_default_cache_dir out_var fallback)
    if(NOT "$ENV{PYSELFEXTEND_CACHE_DIR}" STREQUAL "")
        set(dir "$ENV{PYSELFEXTEND_CACHE_DIR}")
    elseif(NOT "$ENV{XDG_CACHE_HOME}" STREQUAL "")
        set(dir "$ENV{XDG_CACHE_HOME}/pyselfextend")
    elseif(NOT "$ENV{LOCALAPPDATA}" STREQUAL "")
        set(dir "$ENV{LOCALAPPDATA}/pyselfextend/cache")
    elseif(NOT "$ENV{HOME}" STREQUAL "")
        set(dir "$ENV{HOME}/.cache/pyselfextend")
    else()
        set(dir "${fallback}")
    endif()
    execute_process(COMMAND "${CMAKE_COMMAND}" -E make_directory "${dir}" RESULT_VARIABLE failed ERROR_QUIET)
    if(failed)
        set(dir "${fallback}") # a read-only home
    endif()
    file(TO_CMAKE_PATH "${dir}" dir)
    set(${out_var} "${dir}" PARENT_SCOPE)
endfunction()

# Set `archive_var` to the path of the verified sdist, downloading it with `python -m pip` if the cache does not hold it.
function(llama_cpp_fetch pin cache_dir python archive_var)
    llama_cpp_read_pin("${pin}" version sha256)
    set(archive "${cache_dir}/llama_cpp_python-${version}.tar.gz")
    set(${archive_var} "${archive}" PARENT_SCOPE)

    if(EXISTS "${archive}")
        file(SHA256 "${archive}" actual)
        if(actual STREQUAL sha256)
            return()
        endif()
        message(STATUS "${archive} is damaged or of another pin; downloading it again")
    endif()

    if(NOT python)
        message(FATAL_ERROR "No Python interpreter to download llama-cpp-python ${version} with: set Python_EXECUTABLE, or name the "
            "sdist with -DPYSELFEXTEND_LLAMA_CPP_SDIST=<archive or unpacked directory>.")
    endif()
    message(STATUS "Downloading the sdist of llama-cpp-python ${version} (77 MB) to ${cache_dir}")

    # A name of its own, then a rename: two builds may share the cache.
    string(RANDOM LENGTH 8 suffix)
    set(temporary "${cache_dir}/download-${suffix}")
    file(MAKE_DIRECTORY "${temporary}")
    execute_process(
        COMMAND "${python}" -m pip download --quiet --no-input --disable-pip-version-check
                --no-deps --no-binary llama-cpp-python --dest "${temporary}" --requirement "${pin}"
        RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
    file(GLOB downloaded "${temporary}/llama_cpp_python-${version}.tar.gz" "${temporary}/llama-cpp-python-${version}.tar.gz")
    if(failed OR NOT downloaded)
        file(REMOVE_RECURSE "${temporary}")
        message(FATAL_ERROR "pip could not download llama-cpp-python ${version} as ${pin} pins it:\n${output}\n"
            "Without a network, name the sdist with -DPYSELFEXTEND_LLAMA_CPP_SDIST=<archive or unpacked directory>.")
    endif()
    llama_cpp_verify("${downloaded}" "${sha256}" "${pin}")
    file(RENAME "${downloaded}" "${archive}")
    file(REMOVE_RECURSE "${temporary}")
endfunction()

if(CMAKE_SCRIPT_MODE_FILE STREQUAL CMAKE_CURRENT_LIST_FILE)
    if(NOT PYTHON)
        find_program(PYTHON NAMES python3 python)
    endif()
    if(NOT CACHE_DIR)
        llama_cpp_default_cache_dir(CACHE_DIR "${CMAKE_CURRENT_BINARY_DIR}")
    endif()
    llama_cpp_fetch("${PIN}" "${CACHE_DIR}" "${PYTHON}" archive)
    execute_process(COMMAND "${CMAKE_COMMAND}" -E echo "${archive}")
endif()
