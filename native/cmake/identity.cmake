# What the build is made of, in one short hash: compiled into the library and installed beside it for the package to compare.

# Set `build_id_var` from the source's identity and the contents of the files that follow.
function(pyselfextend_build_id source_id build_id_var)
    llama_cpp_hash_files(files_id ${ARGN})
    string(SHA256 hash "${source_id} ${files_id}")
    string(SUBSTRING "${hash}" 0 16 hash)
    set(${build_id_var} "${hash}" PARENT_SCOPE)
endfunction()

# Set `version_var` to the project's version, which pyproject.toml alone states.
function(pyselfextend_read_version pyproject version_var)
    file(STRINGS "${pyproject}" line REGEX "^version = " LIMIT_COUNT 1)
    if(NOT line MATCHES "\"([0-9]+\\.[0-9]+\\.[0-9]+[^\"]*)\"")
        message(FATAL_ERROR "${pyproject} must hold a line `version = \"MAJOR.MINOR.PATCH\"`.")
    endif()
    set(${version_var} "${CMAKE_MATCH_1}" PARENT_SCOPE)
endfunction()
