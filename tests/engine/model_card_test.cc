#include "engine/model_card.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "support/errors.h"
#include "support/temporary_folder.h"
#include "weft/version.h"

namespace weft::engine {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using weft::testing::TemporaryFolder;
using weft::testing::write_file;

TEST(ModelCard, tells_method_models_and_config) {
  ModelCard card;
  card.title = "my-merge";
  card.method = "ties";
  card.method_summary = "task vectors, trimmed and with a sign election";
  card.method_paper = "arXiv:2306.01708";
  card.base_model = "./base";
  card.models = {"./base", "org/one"};
  card.config_text = "merge_method: ties\n";
  EXPECT_EQ(write_model_card(card),
            "---\n"
            "base_model:\n"
            "- ./base\n"
            "- org/one\n"
            "library_name: transformers\n"
            "tags:\n"
            "- mergekit\n"
            "- merge\n"
            "---\n"
            "\n"
            "# my-merge\n"
            "\n"
            "This model was made by merging others, with weft " +
                std::string(version()) +
                " and a mergekit configuration.\n"
                "\n"
                "## Method\n"
                "\n"
                "`ties`: task vectors, trimmed and with a sign election ([arXiv:2306.01708](https://arxiv.org/abs/2306.01708)).\n"
                "\n"
                "The base is `./base`.\n"
                "\n"
                "## Models\n"
                "\n"
                "- `org/one`\n"
                "\n"
                "## Configuration\n"
                "\n"
                "```yaml\n"
                "merge_method: ties\n"
                "```\n");
  const auto files = model_card_files(card);
  ASSERT_EQ(files.size(), 2U);
  EXPECT_EQ(files[0].name, "README.md");
  EXPECT_EQ(files[1].name, "mergekit_config.yml");
  EXPECT_EQ(files[1].content, card.config_text);
}

TEST(ModelCard, hostile_names_and_texts_stay_names_and_texts) {
  ModelCard card;
  card.title = "x\n# heading";
  card.method = "linear";
  card.models = {"true", "12", "a: b", "-", "with`tick", "line\nbreak"};
  card.config_text = "a: |\n  ```\n  # not a heading\n  ````\n";
  const std::string text = write_model_card(card);
  EXPECT_THAT(text, HasSubstr("\n- \"true\"\n- \"12\"\n- \"a: b\"\n- \"-\"\n"));
  EXPECT_THAT(text, HasSubstr("\n- ``with`tick``\n"));
  EXPECT_THAT(text, HasSubstr("\n- \"line\\nbreak\"\n"));
  EXPECT_THAT(text, Not(HasSubstr("\n# heading")));
  EXPECT_THAT(text, HasSubstr("\n`````yaml\na: |"));
  EXPECT_TRUE(text.ends_with("\n`````\n"));
}

TEST(ModelCard, a_single_model_that_is_its_own_base_is_listed) {
  ModelCard card;
  card.method = "passthrough";
  card.base_model = "./m";
  card.models = {"./m"};
  card.config_text = "x";
  EXPECT_THAT(write_model_card(card), HasSubstr("## Models\n\n- `./m`\n"));
  EXPECT_THAT(write_model_card(card), HasSubstr("yaml\nx\n```\n"));
}

TEST(DonorFiles, are_generation_and_processor_configs_and_licences_but_not_what_a_training_run_left) {
  TemporaryFolder donor;
  for (const char* name : {"config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
                           "video_preprocessor_config.json", "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "tokenizer.json", "README.md",
                           "trainer_state.json", "training.json", "modeling_x.py", "model.safetensors"})
    write_file(donor / name, "x");
  std::vector<std::string> names;
  for (const CompanionFile& file : donor_companion_files(donor.path())) {
    names.push_back(file.name);
    EXPECT_EQ(file.copy_of, donor / file.name);
  }
  EXPECT_THAT(names, ::testing::ElementsAre("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "generation_config.json", "preprocessor_config.json",
                                            "processor_config.json", "video_preprocessor_config.json"));
  EXPECT_TRUE(donor_companion_files(donor / "model.safetensors").empty());
  EXPECT_TRUE(donor_companion_files(donor / "absent").empty());
}

}  // namespace
}  // namespace weft::engine
