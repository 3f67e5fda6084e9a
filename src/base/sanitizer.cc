// What builds with sanitizers must know of libraries that are not ours. Empty in any other build.
#if defined(__SANITIZE_ADDRESS__)

extern "C" __attribute__((visibility("default"))) const char* __lsan_default_suppressions();  // NOLINT: the sanitizer's name

/// oneDNN keeps a few blocks a primitive until the process ends, without a pointer that the sanitizer sees.
const char* __lsan_default_suppressions() { return "leak:libdnnl.so\n"; }  // NOLINT

#endif
