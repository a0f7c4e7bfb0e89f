# What the build is made of: compiled into the library and installed beside it, for the package to compare and to report.

# Set `build_id_var` from the source's identity and the contents of the files that follow.
function(pyselfextend_build_id source_id build_id_var)
    llama_cpp_hash_files(files_id ${ARGN})
    string(SHA256 hash "${source_id} ${files_id}")
    string(SUBSTRING "${hash}" 0 16 hash)
    set(${build_id_var} "${hash}" PARENT_SCOPE)
endfunction()

# Set `commit_var` to the commit of llama.cpp that the pinned sdist holds; the pin alone states it.
function(pyselfextend_read_commit pin commit_var)
    file(STRINGS "${pin}" line REGEX "^# llama\\.cpp commit: ")
    if(NOT line MATCHES "^# llama\\.cpp commit: ([0-9a-f]+)$")
        message(FATAL_ERROR "${pin} must hold a line `# llama.cpp commit: COMMIT`, it holds `${line}`.")
    endif()
    set(${commit_var} "${CMAKE_MATCH_1}" PARENT_SCOPE)
endfunction()

# Set `names_var` to the names of the patches that follow, in order, and `sha256_var` to a hash of names and contents.
function(pyselfextend_describe_series names_var sha256_var)
    set(names "")
    foreach(patch IN LISTS ARGN)
        get_filename_component(name "${patch}" NAME_WE)
        list(APPEND names "${name}")
    endforeach()
    list(JOIN names " " names)
    llama_cpp_hash_files(sha256 ${ARGN})
    set(${names_var}  "${names}"  PARENT_SCOPE)
    set(${sha256_var} "${sha256}" PARENT_SCOPE)
endfunction()

# Set `version_var` to the project's version, which pyproject.toml alone states.
function(pyselfextend_read_version pyproject version_var)
    file(STRINGS "${pyproject}" line REGEX "^version = " LIMIT_COUNT 1)
    if(NOT line MATCHES "\"([0-9]+\\.[0-9]+\\.[0-9]+[^\"]*)\"")
        message(FATAL_ERROR "${pyproject} must hold a line `version = \"MAJOR.MINOR.PATCH\"`.")
    endif()
    set(${version_var} "${CMAKE_MATCH_1}" PARENT_SCOPE)
endfunction()
