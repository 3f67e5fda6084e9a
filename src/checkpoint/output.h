#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/file.h"
#include "checkpoint/block_sums.h"
#include "checkpoint/checksums.h"
#include "checkpoint/journal.h"
#include "checkpoint/staging.h"
#include "weft/checkpoint.h"

namespace weft {

/// A tensor that will be written.
struct TensorSpec {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
};

/// Where each tensor goes: files with their headers, known before anything runs.
struct OutputLayout {
  struct Tensor {
    std::string name;
    std::uint32_t file_index = 0;
    std::uint64_t offset_bytes = 0;  ///< from the start of the file
    std::uint64_t size_bytes = 0;
  };
  struct FilePlan {
    std::string name;                ///< "model-00001-of-00003.safetensors"
    std::string header;              ///< the first bytes: length, JSON, padding
    std::uint64_t size_bytes = 0;    ///< whole file
  };
  std::vector<FilePlan> files;
  std::vector<Tensor> tensors;       ///< in the order of `specs`
  std::uint64_t tensor_bytes = 0;    ///< total_size of the index
  std::string index_name;            ///< "model.safetensors.index.json"; empty for a single file
  std::string index_json;
};

/// Lays tensors out as safetensors, byte for byte as the reference writer does. specs: in the order in which shards are filled (layer order); inside a
/// file they are sorted by dtype descending, then name. max_shard_bytes: 0 for one file; a larger tensor gets a file of its own.
/// metadata: header metadata ("format": "pt" is always there). stem: "model". index_metadata: extra string members of the index's metadata.
/// Errors: invalid_argument for duplicate names, names that are no UTF-8 or "__metadata__", sub-byte tensors that end inside a byte, a header over
/// 100,000,000 bytes.
[[nodiscard]] OutputLayout plan_safetensors(const std::vector<TensorSpec>& specs, std::uint64_t max_shard_bytes,
                                            const std::map<std::string, std::string>& metadata, std::string_view stem = "model",
                                            const std::map<std::string, std::string>& index_metadata = {});

/// What is done beside writing.
struct OutputOptions {
  /// What the job is and what went into it: with ingredients there is a journal, and a job that was stopped goes on. Sizes are filled in.
  JournalHead head;
  bool checksums = false;                                  ///< write the list of checksums; always made with a journal
  std::uint64_t journal_bytes = std::uint64_t{1} << 30;    ///< finished tensors of so many bytes are brought to the disk together
  double journal_seconds = 10;                             ///< and at least so often
  bool read_back = false;                                  ///< before commit, read everything from the device again and compare
};

/// Files being written out of sight, with room reserved for every tensor before the first is computed, and put in place by commit().
class Output {
 public:
  virtual ~Output();  ///< removes what was built, unless committed
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  /// Creates the data files at their full size (space checked and reserved), headers not yet written; or, where a job with the same ingredients was
  /// stopped, takes over its files. Once, and before any other file is made. Errors: no_space, with both numbers; invalid_argument when the job that was
  /// stopped had other ingredients, naming them (nothing of it is touched then).
  void create_files(OutputLayout layout, OutputOptions options = {});
  [[nodiscard]] const OutputLayout& layout() const noexcept { return layout_; }

  /// Reads what the job that was stopped had finished; what does not match its checksum will be written anew. Once, before the first write.
  /// Errors: interrupted.
  void check_recorded(int num_threads, const std::atomic<bool>* cancel);
  /// Finished by a job that was stopped, and checked.
  [[nodiscard]] bool is_recorded(std::size_t tensor) const { return !recorded_.empty() && recorded_[tensor] != nullptr; }
  /// What was said when it was finished.
  [[nodiscard]] const std::vector<std::string>& recorded_warnings(std::size_t tensor) const { return recorded_[tensor]->warnings; }
  [[nodiscard]] std::uint64_t recorded_bytes() const noexcept { return recorded_bytes_; }

  /// Writes part of tensor number `tensor` of the layout; every byte is to be written once. Thread-safe. Also throws what went wrong with the journal.
  void write_tensor(std::size_t tensor, std::uint64_t offset, std::span<const std::byte> data);
  /// The tensor is written completely and good: the journal may tell so, with what there is to say about it. Thread-safe; does no I/O.
  void finish_tensor(std::size_t tensor, std::vector<std::string> warnings);

  /// Reads back what was written there. Thread-safe.
  void read_tensor(std::size_t tensor, std::uint64_t offset, std::span<std::byte> out) const;

  /// Headers, checksums, fsync, close, fsync of the folder, rename into place, fsync of the parent. Once. Errors: io, no_space; the destination is then
  /// as it was.
  void commit();
  /// After a failure: brings what is finished to the disk and keeps it for a later job. Gives the folder where it is; empty when there is nothing that a
  /// job could go on with (then everything is removed as usual).
  std::filesystem::path suspend() noexcept;
  /// From here on the job is at work: a failure that is not followed by suspend() also removes what was taken over.
  void begin() noexcept { staging_.release(); }
  /// What could not be tidied up after a commit; for the job's report.
  [[nodiscard]] const std::vector<std::string>& warnings() const noexcept { return staging_.warnings(); }
  [[nodiscard]] const std::filesystem::path& destination() const noexcept { return staging_.destination(); }
  /// Where the files are until commit: inside the hidden folder beside the destination.
  [[nodiscard]] const std::filesystem::path& working_folder() const noexcept { return staging_.content(); }

  /// For a process that must end at once, whatever its threads are doing: writes the journals of all living outputs. Gives the folders of those that
  /// can go on. Thread-safe; may wait for a slow device.
  static std::vector<std::filesystem::path> save_all() noexcept;

 protected:
  Output(std::filesystem::path destination, Staging::What what, Existing existing, bool resumable);
  [[nodiscard]] bool makes_sums() const noexcept { return options_.checksums; }
  Staging staging_;
  std::vector<FileSums> other_sums_;               ///< of files that hold no tensors

 private:
  [[nodiscard]] bool has_journal() const noexcept { return !options_.head.ingredients.empty(); }
  void open_new_files();
  void open_recorded_files();
  void keep_journal();
  void save_batch(std::unique_lock<std::mutex>& lock);
  std::uint64_t append_unsaved();
  void end_journal_thread();
  void throw_if_journal_failed();
  [[nodiscard]] std::vector<FileSums> collect_sums() const;
  void read_back() const;

  OutputLayout layout_;
  OutputOptions options_;
  std::vector<File*> files_;                       ///< of layout_, owned by staging_
  std::atomic<std::uint64_t> written_bytes_ = 0;   ///< of tensors

  // What an earlier job left.
  std::vector<JournalRecord> found_records_;
  std::vector<const JournalRecord*> recorded_;     ///< one a tensor, null where it is to be written; empty when nothing was taken over
  std::uint64_t recorded_bytes_ = 0;

  // Checksums of tensors: being made, and made.
  std::mutex sums_mutex_;
  std::vector<std::unique_ptr<BlockSums>> making_;
  std::vector<std::vector<Checksum>> sums_;

  // The journal. A thread of its own brings finished tensors to the disk, so that nobody who computes waits for the device.
  std::mutex journal_mutex_;
  std::condition_variable journal_wakes_;
  std::optional<Journal> journal_;
  std::vector<JournalRecord> unsaved_;
  std::uint64_t unsaved_bytes_ = 0;
  std::uint64_t num_saved_ = 0;                    ///< records in the file
  bool journal_ends_ = false;
  bool folders_synced_ = false;                    ///< the hidden folder would survive a power failure
  std::atomic<bool> journal_failed_ = false;
  std::exception_ptr journal_failure_;
  bool sealed_ = false;                            ///< everything is written and on the disk
  bool lost_ = false;                              ///< an fsync has failed: nobody knows what is on the disk
  std::thread journal_thread_;
};

/// A model folder. What was at the destination stays as it was until commit (see Staging for what counts as absent, links, parents, mount points).
/// Existing::write_into is not one step: files are put in place one by one, weights first, config.json last, and old weights that the new
/// index does not name are removed.
class OutputFolder : public Output {
 public:
  /// Takes the place. Errors: invalid_argument when something is in the way, io (another job writes there), no_space, unsupported.
  OutputFolder(std::filesystem::path destination, Existing existing, bool resumable = false);

  /// name: plain, or below the folder ("additional_chat_templates/rag.jinja"). A name can be given once.
  void write_text(std::string_view name, std::string_view content);
  /// Byte for byte.
  void copy_file(const std::filesystem::path& source, std::string_view name);
};

/// One .safetensors file; its layout has one file, whose name does not matter.
class OutputFile : public Output {
 public:
  OutputFile(std::filesystem::path destination, Existing existing, bool resumable = false);
};

}  // namespace weft
