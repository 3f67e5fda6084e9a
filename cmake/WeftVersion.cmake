# The commit for `weft --version`; "unknown" outside a git checkout.
set(WEFT_COMMIT "unknown")
find_package(Git QUIET)
if(Git_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} -C ${PROJECT_SOURCE_DIR} rev-parse --short=12 HEAD
                  OUTPUT_VARIABLE weft_commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE weft_git)
  if(weft_git EQUAL 0)
    set(WEFT_COMMIT ${weft_commit})
  endif()
endif()
