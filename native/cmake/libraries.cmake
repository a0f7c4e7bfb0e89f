# File names, search paths and installation of libllama and the ggml libraries.

# Set `out_var` to every shared library that a directory and those below it define.
function(pyselfextend_shared_libraries directory out_var)
    get_property(targets DIRECTORY "${directory}" PROPERTY BUILDSYSTEM_TARGETS)
    set(libraries "")
    foreach(target IN LISTS targets)
        get_target_property(type ${target} TYPE)
        if(type STREQUAL "SHARED_LIBRARY")
            list(APPEND libraries ${target})
        endif()
    endforeach()
    get_property(children DIRECTORY "${directory}" PROPERTY SUBDIRECTORIES)
    foreach(child IN LISTS children)
        pyselfextend_shared_libraries("${child}" found)
        list(APPEND libraries ${found})
    endforeach()
    set(${out_var} "${libraries}" PARENT_SCOPE)
endfunction()

# Libraries find one another beside themselves (or in `ARGN`, relative to themselves), never by a search through the system.
function(pyselfextend_set_rpath target)
    if(APPLE)
        set(origin "@loader_path")
    else()
        set(origin "$ORIGIN")
    endif()
    set(rpath "${origin}")
    foreach(directory IN LISTS ARGN)
        list(APPEND rpath "${origin}/${directory}")
    endforeach()
    set_target_properties(${target} PROPERTIES
        INSTALL_RPATH               "${rpath}"
        BUILD_WITH_INSTALL_RPATH    ON
        INSTALL_RPATH_USE_LINK_PATH ON) # a GPU toolkit's own libraries
endfunction()

# The dynamic linker takes a library that is already in the process for one that is asked for by the same SONAME. With the stock names,
# our libllama would call the ggml of any other package that came first. So the ggml libraries get names of their own.
# libllama and libmtmd must keep their file names, llama_cpp looks for them; without SOVERSION their SONAMEs are libllama.so and libmtmd.so,
# where stock builds have libllama.so.0 and libmtmd.so.0, and llama_cpp opens them by their full paths.
# No VERSION and no SOVERSION also means no symbolic links, which a wheel cannot hold.
function(pyselfextend_name_libraries)
    foreach(target IN LISTS ARGN)
        if(NOT target MATCHES "^(llama|mtmd)$")
            set_target_properties(${target} PROPERTIES OUTPUT_NAME "${target}-pyselfextend")
        endif()
        foreach(property VERSION SOVERSION PUBLIC_HEADER)
            set_property(TARGET ${target} PROPERTY ${property})
        endforeach()
        if(WIN32)
            set_target_properties(${target} PROPERTIES WINDOWS_EXPORT_ALL_SYMBOLS ON)
        endif()
        pyselfextend_set_rpath(${target})
    endforeach()
endfunction()

function(pyselfextend_install_libraries)
    install(TARGETS ${ARGN}
        LIBRARY DESTINATION pyselfextend/lib COMPONENT pyselfextend
        RUNTIME DESTINATION pyselfextend/lib COMPONENT pyselfextend
        ARCHIVE DESTINATION pyselfextend/lib COMPONENT pyselfextend-development) # import libraries on Windows
endfunction()
