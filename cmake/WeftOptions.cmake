# Interface targets: what every target of ours is compiled with. Nothing is set globally.
add_library(weft_warnings INTERFACE)
target_compile_options(weft_warnings INTERFACE -Wall -Wextra -Wshadow -Wconversion)
# At -O3 GCC 12 finds overlaps within std::string's own copying that are not there (its bug 105651).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(weft_warnings INTERFACE $<$<CONFIG:Release>:-Wno-restrict>)
endif()
# Errors only for the compilers that we build with: newer ones warn of what we could not know, and must not stop anybody's build.
if(WEFT_WERROR AND ((CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13) OR
                    (CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 15)))
  target_compile_options(weft_warnings INTERFACE -Werror)
endif()

add_library(weft_options INTERFACE)
target_compile_features(weft_options INTERFACE cxx_std_20)
# Results must not depend on whether a multiply and an add were fused.
target_compile_options(weft_options INTERFACE -ffp-contract=off)
# A library that nothing here calls yet, or that this program does not need, must not be loaded at its start.
target_link_options(weft_options INTERFACE LINKER:--as-needed)
if(WEFT_ASSERTIONS)
  target_compile_definitions(weft_options INTERFACE WEFT_ASSERTIONS=1)
endif()
if(WEFT_SANITIZE)
  target_compile_options(weft_options INTERFACE -fsanitize=${WEFT_SANITIZE} -fno-omit-frame-pointer)
  string(REPLACE "fuzzer-no-link," "" weft_link_sanitize "${WEFT_SANITIZE}")
  target_link_options(weft_options INTERFACE -fsanitize=${weft_link_sanitize})
  if(WEFT_SANITIZE MATCHES "thread")
    target_link_options(weft_options INTERFACE LINKER:--undefined=__tsan_default_suppressions) # the sanitizer has one of its own, which is weak
  endif()
  if(WEFT_SANITIZE MATCHES "undefined")
    target_compile_options(weft_options INTERFACE -fno-sanitize-recover=undefined)
  endif()
endif()

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "" FORCE)
endif()
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_CXX_EXTENSIONS OFF)

find_program(WEFT_CCACHE ccache)
if(WEFT_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${WEFT_CCACHE})
endif()
