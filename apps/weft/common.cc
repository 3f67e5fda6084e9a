#include "common.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <limits>

#include "base/text.h"
#include "engine/interrupt.h"

namespace weft::app {
namespace {

constexpr std::uint64_t kWarningsShown = 5;

std::atomic<bool> cancelled{false};

}  // namespace

Json text_or_null(std::string_view text) { return text.empty() ? Json() : Json(text); }

void cancel_on_signals(bool json) {
  engine::end_on_signals(cancelled, [json](const Error& error) {
    const int status = report_error(error, json);
    std::fflush(stdout);
    return status;
  });
}

void claim_the_end() { engine::claim_the_end(); }

void add_print_options(Command& command, CommonOptions& options) {
  command.group("Printing");
  command.flag({"--json"}, options.json, "print one JSON document instead of text");
  command.flag({"-q", "--quiet"}, options.quiet, "print nothing but warnings and errors (and JSON, if asked for)");
  command.flag({"-v", "--verbose"}, options.verbose, "print more: every tensor, every warning");
}

void add_job_options(Command& command, CommonOptions& options) {
  command.group("Running");
  command.number({"-j", "--threads"}, options.threads, "threads that compute").default_text = "all of the machine";
  command.size({"--memory"}, options.memory_bytes, "what the job may hold in memory, such as 2GiB or 800MB").default_text = "a quarter of RAM";
  command.flag({"--progress"}, options.progress, "show progress even when this is no terminal");
}

void add_output_options(Command& command, CommonOptions& options) {
  command.group("Output");
  command.size({"--max-shard-size"}, options.max_shard_bytes, "bytes of tensors in one file; 0 for a single file").default_text = "5GB";
  command.flag({"--dry-run"}, options.dry_run, "print the plan and stop");
  command.flag({"--force"}, options.force, "replace an existing output");
  command.size({"--journal-every"}, options.journal_bytes, "finished bytes that a crash may cost").default_text = "1GiB, or 10 seconds";
  command.flag({"--read-back"}, options.read_back, "read what was written from the device again and compare");
  command.flag({"--verify-input"}, options.verify_input, "check the inputs against their checksums first, where they have any");
  command.flag({"--allow-non-finite"}, options.allow_non_finite, "let NaN and infinities in the inputs through");
}

void print_json(const Json& document) {
  // For people who look at it the document is spread out; programs get one line.
  const std::string text = write_json(document, is_terminal(stdout) ? 2 : 0);
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fputc('\n', stdout);
}

void Console::say(const std::string& text, std::string_view label) {
  if (progress_) progress_->clear();
  std::fprintf(stderr, "%s %s\n", paint(stderr, Style::yellow, label).c_str(), text.c_str());
}

void Console::warn(const std::string& text) {
  ++num_warnings_;
  if (options_.json && !options_.dry_run) return;
  if (num_warnings_ <= kWarningsShown || options_.verbose) say(text);
}

void Console::finish() {
  if (progress_) progress_->clear();
  if (options_.json && !options_.dry_run) return;
  if (num_warnings_ > kWarningsShown && !options_.verbose) say(fmt::format("and {} more (--verbose shows them all)", num_warnings_ - kWarningsShown));
}

void Console::fill(JobOptions& job) {
  constexpr std::uint64_t kLargest = std::numeric_limits<int>::max();  // far more than the library takes, which says so
  job.threads = static_cast<int>(std::min(options_.threads, kLargest));
  job.memory_bytes = options_.memory_bytes;
  job.seed = options_.seed;
  job.max_shard_bytes = options_.max_shard_bytes;
  job.force = options_.force;
  job.journal_bytes = options_.journal_bytes;
  job.read_back = options_.read_back;
  job.verify_input = options_.verify_input;
  job.dry_run = options_.dry_run;
  job.allow_non_finite = options_.allow_non_finite;
  job.cancel = &cancelled;
  job.on_warning = [this](const std::string& text) { warn(text); };
  if (!options_.json && (options_.progress || (is_terminal(stderr) && !options_.quiet))) {
    progress_ = std::make_unique<ProgressLine>();
    job.on_progress = [this](const Progress& progress) { progress_->show(progress); };
  }
}

DType dtype_argument(const std::string& text, const std::string& option) {
  if (const auto dtype = dtype_from_any(text)) return *dtype;
  std::vector<std::string> names;
  for (int i = 0; i < kNumDTypes; ++i) {
    const DTypeInfo& known = info(static_cast<DType>(i));
    names.emplace_back(known.torch_name.empty() ? known.name : known.torch_name);
  }
  const auto nearest = nearest_name(text, names);
  throw Error(ErrorCode::invalid_argument, "unknown type '" + printable(text) + "'", {.key = option},
              nearest ? "did you mean " + *nearest + "?" : "such as float32, bfloat16 or float16");
}

double real_argument(const std::string& text, const char* option) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    throw Error(ErrorCode::invalid_argument, fmt::format("{} takes a number, got '{}'", option, printable(text)), {.key = option});
  return value;
}

int report_error(const Error& error, bool json) {
  std::fflush(stdout);
  if (json) {
    const ErrorPlace& place = error.place();
    const Json document(Json::Object{{"error", Json(Json::Object{
                                                   {"code", Json(to_string(error.code()))},
                                                   {"message", Json(error.message())},
                                                   {"where", Json(Json::Object{{"file", text_or_null(place.file)},
                                                                               {"tensor", text_or_null(place.tensor)},
                                                                               {"key", text_or_null(place.key)},
                                                                               {"byte", place.byte ? Json(*place.byte) : Json()}})},
                                                   {"advice", text_or_null(error.advice())},
                                               })}});
    print_json(document);
  }
  std::fprintf(stderr, "%s %s\n", paint(stderr, Style::red, "error:").c_str(), error.what());
  return error.exit_status();
}

}  // namespace weft::app
