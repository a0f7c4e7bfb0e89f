# The C++ tests, and the benchmark of the kernel. Those of the attention need ggml alone, so that they are quickly built for another processor.

function(pyselfextend_add_program name)
    add_executable(${name} "${PROJECT_SOURCE_DIR}/native/tests/${name}.cpp" ${ARGN})
    target_compile_features(${name} PRIVATE cxx_std_17)
    target_include_directories(${name} PRIVATE
        "${PROJECT_SOURCE_DIR}/native/include" "${PROJECT_SOURCE_DIR}/native/src")
    target_include_directories(${name} SYSTEM PRIVATE
        "${LLAMA_CPP_DIR}/src" "${LLAMA_CPP_DIR}/ggml/src" "${LLAMA_CPP_DIR}/ggml/src/ggml-cpu")
    target_link_libraries(${name} PRIVATE ggml)
    pyselfextend_warnings(${name})
endfunction()

function(pyselfextend_add_programs)
    pyselfextend_add_program(test-positions)
    target_link_libraries(test-positions PRIVATE llama)

    pyselfextend_add_program(test-schedule)
    pyselfextend_add_program(test-kernel  $<TARGET_OBJECTS:llama-self-extend-kernel>)
    pyselfextend_add_program(bench-kernel $<TARGET_OBJECTS:llama-self-extend-kernel>)
    pyselfextend_add_program(test-attn-device $<TARGET_OBJECTS:llama-self-extend-kernel>)
    # ggml's vectors, for the peak of the machine
    target_compile_options(bench-kernel PRIVATE $<TARGET_PROPERTY:ggml-cpu,COMPILE_OPTIONS>)

    # The code is written for nvcc with GCC behind it, and threads are fibers of the C library of Linux.
    add_custom_target(test-cuda-host)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
        include("${PROJECT_SOURCE_DIR}/native/cmake/cuda-host.cmake")
        pyselfextend_add_cuda_host(test-cuda-host 610 750 890)
    else()
        message(STATUS "test-cuda-host is left out: it wants GCC and Linux")
    endif()

    foreach(test test-positions test-schedule test-kernel test-attn-device)
        add_test(NAME ${test} COMMAND ${test})
    endforeach()
    set_tests_properties(test-attn-device PROPERTIES SKIP_RETURN_CODE 77) # no device that computes the node
endfunction()
