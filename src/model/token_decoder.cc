#include "model/token_decoder.h"

#include <array>
#include <string_view>
#include <utility>

#include "base/text.h"
#include "checkpoint/json.h"
#include "model/json_fields.h"
#include "model/unicode_text.h"

namespace weft::model {
namespace {

using Tokens = std::vector<std::string>;

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (from.empty()) return;
  std::size_t at = text.find(from);
  if (at == std::string::npos) return;
  std::string out;
  std::size_t last = 0;
  for (; at != std::string::npos; at = text.find(from, last)) {
    out.append(text, last, at - last).append(to);
    last = at + from.size();
  }
  text = out.append(text, last);
}

/// Takes back the spaces that splitting English into words put before punctuation and contractions.
void clean_up(std::string& text) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kRules = {{{" .", "."},
                                                                                     {" ?", "?"},
                                                                                     {" !", "!"},
                                                                                     {" ,", ","},
                                                                                     {" ' ", "'"},
                                                                                     {" n't", "n't"},
                                                                                     {" 'm", "'m"},
                                                                                     {" do not", " don't"},
                                                                                     {" 's", "'s"},
                                                                                     {" 've", "'ve"},
                                                                                     {" 're", "'re"}}};
  for (const auto& [from, to] : kRules) replace_all(text, from, to);
}

class Sequence final : public TokenDecoder {
 public:
  explicit Sequence(std::vector<std::unique_ptr<TokenDecoder>> parts) : parts_(std::move(parts)) {}
  void apply(Tokens& tokens) const override {
    for (const auto& part : parts_) part->apply(tokens);
  }

 private:
  std::vector<std::unique_ptr<TokenDecoder>> parts_;
};

class ByteLevel final : public TokenDecoder {
 public:
  void apply(Tokens& tokens) const override {
    std::string bytes;
    for (const std::string& token : tokens)
      if (!append_bytes_of_characters(token, bytes)) bytes += token;
    tokens.assign(1, with_replacement_characters(bytes));
  }
};

class ByteFallback final : public TokenDecoder {
 public:
  void apply(Tokens& tokens) const override {
    Tokens out;
    std::string bytes;
    const auto flush = [&] {
      if (bytes.empty()) return;
      if (is_valid_utf8(bytes))
        out.push_back(bytes);
      else
        out.insert(out.end(), bytes.size(), "\uFFFD");
      bytes.clear();
    };
    for (std::string& token : tokens) {
      if (const int byte = byte_of_token(token, true); byte >= 0) {
        bytes.push_back(static_cast<char>(byte));
        continue;
      }
      flush();
      out.push_back(std::move(token));
    }
    flush();
    tokens = std::move(out);
  }
};

class Fuse final : public TokenDecoder {
 public:
  void apply(Tokens& tokens) const override {
    std::string all;
    for (const std::string& token : tokens) all += token;
    tokens.assign(1, std::move(all));
  }
};

class Replace final : public TokenDecoder {
 public:
  Replace(TextPattern pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void apply(Tokens& tokens) const override {
    std::vector<AlignedText::Match> matches;
    for (std::string& token : tokens) {
      matches.clear();
      pattern_.find(token, matches);
      if (matches.empty()) continue;
      std::string out;
      std::size_t last = 0;
      for (const auto& match : matches) {
        out.append(token, last, match.begin - last).append(content_);
        last = match.end;
      }
      token = out.append(token, last);
    }
  }

 private:
  TextPattern pattern_;
  std::string content_;
};

class Strip final : public TokenDecoder {
 public:
  Strip(std::string content, std::uint64_t start, std::uint64_t stop) : content_(std::move(content)), start_(start), stop_(stop) {}
  void apply(Tokens& tokens) const override {
    for (std::string& token : tokens) {
      std::size_t begin = 0;
      for (std::uint64_t i = 0; i < start_ && token.compare(begin, content_.size(), content_) == 0 && begin < token.size(); ++i)
        begin += content_.size();
      std::size_t end = token.size();
      for (std::uint64_t i = 0; i < stop_ && end >= begin + content_.size() && token.compare(end - content_.size(), content_.size(), content_) == 0;
           ++i)
        end -= content_.size();
      token = token.substr(begin, end - begin);
    }
  }

 private:
  std::string content_;
  std::uint64_t start_;
  std::uint64_t stop_;
};

class Metaspace final : public TokenDecoder {
 public:
  Metaspace(std::string replacement, bool prepended) : replacement_(std::move(replacement)), prepended_(prepended) {}
  void apply(Tokens& tokens) const override {
    for (std::size_t i = 0; i < tokens.size(); ++i) replace_all(tokens[i], replacement_, i == 0 && prepended_ ? "" : " ");
  }

 private:
  std::string replacement_;
  bool prepended_;
};

class WordPiece final : public TokenDecoder {
 public:
  WordPiece(std::string prefix, bool cleanup) : prefix_(std::move(prefix)), cleanup_(cleanup) {}
  void apply(Tokens& tokens) const override {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      std::string& token = tokens[i];
      if (i > 0 && !prefix_.empty()) {
        if (token.starts_with(prefix_))
          token.erase(0, prefix_.size());
        else
          token.insert(token.begin(), ' ');
      }
      if (cleanup_) clean_up(token);
    }
  }

 private:
  std::string prefix_;
  bool cleanup_;
};

class Bpe final : public TokenDecoder {
 public:
  explicit Bpe(std::string suffix) : suffix_(std::move(suffix)) {}
  void apply(Tokens& tokens) const override {
    for (std::size_t i = 0; i < tokens.size(); ++i) replace_all(tokens[i], suffix_, i + 1 == tokens.size() ? "" : " ");
  }

 private:
  std::string suffix_;
};

class Ctc final : public TokenDecoder {
 public:
  Ctc(std::string pad, std::string delimiter, bool cleanup) : pad_(std::move(pad)), delimiter_(std::move(delimiter)), cleanup_(cleanup) {}
  void apply(Tokens& tokens) const override {
    Tokens out;
    const std::string* last = nullptr;
    for (const std::string& token : tokens) {
      if (last != nullptr && *last == token) continue;
      last = &token;
      std::string text = token;
      replace_all(text, pad_, "");
      if (cleanup_) {
        clean_up(text);
        replace_all(text, delimiter_, " ");
      }
      if (!text.empty()) out.push_back(std::move(text));
    }
    tokens = std::move(out);
  }

 private:
  std::string pad_;
  std::string delimiter_;
  bool cleanup_;
};

}  // namespace

std::unique_ptr<TokenDecoder> make_decoder(const Json& json, const std::filesystem::path& file, const std::string& key) {
  if (json.is_null()) return nullptr;
  const JsonFields fields(json, file, key);
  const std::string type = fields.text("type");
  if (type == "Sequence") {
    std::vector<std::unique_ptr<TokenDecoder>> parts;
    for (const Json& item : fields.list("decoders"))
      if (auto part = make_decoder(item, file, fields.inside("decoders"))) parts.push_back(std::move(part));
    return std::make_unique<Sequence>(std::move(parts));
  }
  if (type == "ByteLevel") return std::make_unique<ByteLevel>();
  if (type == "ByteFallback") return std::make_unique<ByteFallback>();
  if (type == "Fuse") return std::make_unique<Fuse>();
  if (type == "Replace") return std::make_unique<Replace>(fields.pattern("pattern"), fields.text("content"));
  if (type == "Strip") {
    std::string content = fields.text("content", " ");
    if (content.empty() || decode_utf8(content.data()).size_bytes != content.size()) fields.refuse("content", "is not one character");
    return std::make_unique<Strip>(std::move(content), fields.count("start", 0), fields.count("stop", 0));
  }
  if (type == "Metaspace") {
    const bool prepended = fields.optional_text("prepend_scheme") ? fields.text("prepend_scheme") != "never" : fields.flag("add_prefix_space", true);
    return std::make_unique<Metaspace>(fields.text("replacement", "\u2581"), prepended);
  }
  if (type == "WordPiece") return std::make_unique<WordPiece>(fields.text("prefix", "##"), fields.flag("cleanup", true));
  if (type == "BPEDecoder") return std::make_unique<Bpe>(fields.text("suffix", "</w>"));
  if (type == "CTC")
    return std::make_unique<Ctc>(fields.text("pad_token", "<pad>"), fields.text("word_delimiter_token", "|"), fields.flag("cleanup", true));
  fields.refuse_type(type, "decoder");
}

}  // namespace weft::model
