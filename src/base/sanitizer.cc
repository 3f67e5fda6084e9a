// What builds with sanitizers must know of libraries that are not ours. Empty in any other build.
#if defined(__SANITIZE_ADDRESS__)

extern "C" __attribute__((visibility("default"))) const char* __lsan_default_suppressions();  // NOLINT: the sanitizer's name

/// oneDNN keeps a few blocks a primitive until the process ends, without a pointer that the sanitizer sees.
const char* __lsan_default_suppressions() { return "leak:libdnnl.so\n"; }  // NOLINT

#elif defined(__SANITIZE_THREAD__)

extern "C" __attribute__((visibility("default"))) const char* __tsan_default_suppressions();  // NOLINT: the sanitizer's name

/// oneDNN is not built with the sanitizer, which therefore does not see how its cache of primitives is locked.
const char* __tsan_default_suppressions() { return "race:libdnnl.so\n"; }  // NOLINT

#endif
