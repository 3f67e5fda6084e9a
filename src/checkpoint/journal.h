#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/checksum.h"
#include "base/file.h"

namespace weft {

/// A tensor that an unfinished job has written completely.
struct JournalRecord {
  std::uint32_t file_index = 0;
  std::uint64_t offset_bytes = 0;  ///< in that file
  std::uint64_t size_bytes = 0;
  Checksum checksum;  ///< of the tensor (whole_of_blocks)
  std::vector<std::string> warnings;
};

/// What an unfinished job is and what went into it. Values are compared one by one when it is to go on.
struct JournalHead {
  struct Ingredient {
    std::string name;   ///< as a message calls it: "the config", "input '/models/a/model.safetensors'"
    std::string value;  ///< what must be the same; a digest where it is long
    bool operator==(const Ingredient&) const = default;
  };
  std::string what;    ///< "merging"
  std::string output;  ///< absolute path
  std::uint64_t num_tensors = 0;
  std::uint64_t size_bytes = 0;     ///< of the tensors
  std::uint64_t content_inode = 0;  ///< of the folder with the files; another one there is what the finished output was exchanged with
  std::vector<Ingredient> ingredients;
};

/// The names of what differs, with both values where they are short; empty when nothing does.
[[nodiscard]] std::vector<std::string> differences(const JournalHead& before, const JournalHead& now);

/// The list of finished tensors beside the files of an unfinished job. Each record has a CRC that continues the one before, so that what a crash
/// tore, and whatever lies behind it, ends the list. Not thread-safe.
class Journal {
 public:
  struct Content {
    JournalHead head;
    std::vector<JournalRecord> records;  ///< in the order of writing; a later one for the same place holds
    std::uint64_t end_bytes = 0;         ///< where the next record goes
    std::uint32_t crc = 0;
  };
  /// Empty when there is none, or its head is not whole. Errors: io.
  [[nodiscard]] static std::optional<Content> read(const std::filesystem::path& path);

  /// Starts one; whatever is there is overwritten.
  Journal(const std::filesystem::path& path, const JournalHead& head);
  /// Goes on behind the last whole record.
  Journal(const std::filesystem::path& path, const Content& content);

  void append(const JournalRecord& record);
  /// Brings what was appended to the file.
  void write();
  /// And to the disk; may be called beside the others.
  void sync() const { file_.sync(); }
  void close() { file_.close(); }

 private:
  File file_;
  std::vector<std::byte> pending_;
  std::uint64_t end_bytes_ = 0;
  std::uint32_t crc_ = 0;
};

}  // namespace weft
