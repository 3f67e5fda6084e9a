# WEFT_VEGA: one script made of the packaged parts of Vega, for reports; an empty file where the package is absent.
set(WEFT_VEGA ${CMAKE_BINARY_DIR}/report/vega.js)
find_path(WEFT_VEGA_FOLDER vega-view.min.js PATHS /usr/share/javascript/vega /usr/local/share/javascript/vega NO_DEFAULT_PATH
  DOC "Folder of Vega's scripts (Debian: libjs-vega); without them there is no --report")
# Each after those that it needs. Left out is what no chart of ours uses: maps, forces, trees, word clouds.
set(weft_vega_parts util time format loader dataflow statistics transforms view-transforms encode canvas scale scenegraph selection expression
  event-selector functions parser runtime view interpreter)

set(weft_vega "")
if(WEFT_VEGA_FOLDER)
  # Its licence asks to be shown with every copy.
  foreach(licence IN ITEMS /usr/share/doc/libjs-vega/copyright ${WEFT_VEGA_FOLDER}/LICENSE)
    if(EXISTS ${licence})
      file(READ ${licence} text)
      string(REPLACE "*/" "* /" text "${text}")
      string(APPEND weft_vega "/* Vega, and what is in it of D3:\n${text}*/\n")
      break()
    endif()
  endforeach()
  # The parts are CommonJS modules; none of them is run before a report is opened.
  string(APPEND weft_vega "const vega = (() => {\nconst parts = {}, made = {};\n"
    "const require = name => { const key = name === 'vega-selections' ? 'vega-selection' : name;\n"
    "if (!made[key]) { made[key] = {}; if (parts[key]) parts[key](made[key], {exports: made[key]}, require); } return made[key]; };\n")
  foreach(part IN LISTS weft_vega_parts)
    set(file ${WEFT_VEGA_FOLDER}/vega-${part}.min.js)
    if(NOT EXISTS ${file})
      message(STATUS "No reports: ${file} is missing")
      set(weft_vega "")
      break()
    endif()
    file(READ ${file} text)
    string(REGEX REPLACE "//# sourceMappingURL=[^\n]*" "" text "${text}")
    string(TOLOWER "${text}" lower)
    if(lower MATCHES "</script|<!--")
      message(FATAL_ERROR "${file} cannot be part of an HTML page")
    endif()
    string(APPEND weft_vega "parts['vega-${part}'] = function(exports, module, require) {\n${text}\n};\n")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  endforeach()
  if(weft_vega)
    string(APPEND weft_vega "const dataflow = require('vega-dataflow');\n"
      "Object.assign(dataflow.transforms, require('vega-transforms'), require('vega-view-transforms'), require('vega-encode'));\n"
      "return {transforms: dataflow.transforms, Warn: require('vega-util').Warn, View: require('vega-view').View, parse: require('vega-parser').parse,\n"
      "expressionInterpreter: require('vega-interpreter').expressionInterpreter};\n})();\n")
  endif()
endif()
if(NOT weft_vega)
  message(STATUS "No reports: install libjs-vega for --report")
endif()
set(weft_vega_before "")
if(EXISTS ${WEFT_VEGA})
  file(READ ${WEFT_VEGA} weft_vega_before)
endif()
if(NOT EXISTS ${WEFT_VEGA} OR NOT weft_vega STREQUAL weft_vega_before)
  file(WRITE ${WEFT_VEGA} "${weft_vega}")
endif()
unset(weft_vega)
unset(weft_vega_before)
