#include "engine/units.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "support/errors.h"
#include "support/temporary_folder.h"
#include "weft/adapter.h"
#include "weft/measure.h"

namespace weft {
namespace {

using engine::Unit;
using ::testing::HasSubstr;

TEST(Units, one_that_can_never_fit_is_refused_before_any_work_with_both_numbers) {
  std::atomic<int> ran = 0;
  const auto run = [&] { ++ran; };
  JobOptions options;
  options.memory_bytes = 20'000;
  const std::vector<Unit> units = {{"first", 10, 10, run}, {"second", 25'000, 1, run}, {"third", 20'000, 1, run}};
  for (const engine::Units how : {engine::Units::check, engine::Units::run}) {
    const std::optional<Error> error = testing::error_of([&] { engine::run_units(units, options, "testing", how); });
    ASSERT_TRUE(error);
    EXPECT_EQ(error->code(), ErrorCode::out_of_memory);
    EXPECT_THAT(error->what(), HasSubstr("'second' takes 25.0 kB of memory, and the job may use 20.0 kB"));
    EXPECT_THAT(error->what(), HasSubstr("give --memory 25000 or more"));
    EXPECT_EQ(ran, 0);
  }
  options.memory_bytes = 25'000;
  engine::run_units(units, options, "testing");
  EXPECT_EQ(ran, 3);
}

TEST(Units, together_never_hold_more_than_the_budget) {
  std::atomic<int> held = 0, most = 0;
  std::vector<Unit> units;
  for (int i = 0; i < 40; ++i) {
    const int bytes = 100 + 37 * i % 400;
    units.push_back({"unit", static_cast<std::uint64_t>(bytes), 1, [&, bytes] {
                       const int now = held += bytes;
                       for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) continue;
                       held -= bytes;
                     }});
  }
  JobOptions options;
  options.memory_bytes = 700;
  options.threads = 8;
  engine::run_units(units, options, "testing");
  EXPECT_LE(most, 700);
}

TEST(Units, extraction_and_spectra_of_matrices_that_cannot_fit_are_refused_and_leave_nothing) {
  const std::string models = WEFT_SOURCE_DIR "/models/";
  const testing::TemporaryFolder folder;
  ExtractOptions extract;
  extract.rank = 4;
  extract.memory_bytes = 1 << 20;
  for (const bool dry_run : {true, false}) {
    extract.dry_run = dry_run;
    const std::optional<Error> error =
        testing::error_of([&] { static_cast<void>(extract_adapter(models + "tiny-base", models + "tiny-german", folder / "out", extract)); });
    ASSERT_TRUE(error);
    EXPECT_EQ(error->code(), ErrorCode::out_of_memory);
    EXPECT_THAT(error->what(), HasSubstr("and the job may use"));
    EXPECT_TRUE(testing::tree(folder.path()).empty());
  }
  MeasureOptions measure;
  measure.memory_bytes = 1 << 20;
  const std::vector<std::string> one = {models + "tiny-base"};
  EXPECT_WEFT_ERROR(measure_models(one, measure), out_of_memory, "and the job may use");
}

}  // namespace
}  // namespace weft
