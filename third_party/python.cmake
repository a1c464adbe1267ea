# Python's headers and pybind11, both of the interpreter that runs the build (Python_EXECUTABLE, or the first on PATH).
set(PYBIND11_FINDPYTHON ON)
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(
  COMMAND "${Python_EXECUTABLE}" -m pybind11 --cmakedir
  OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "vecbank: ${Python_EXECUTABLE} has no pybind11 (pip install pybind11)")
endif()
find_package(pybind11 CONFIG REQUIRED)
