#pragma once

#include "json.h"

#include <cstdint>
#include <string>
#include <vector>

//
// what llama.cpp's terminal chat shows of the context
//

// the files of --read: texts that the first message begins with
const std::vector<std::string> & llama_self_extend_files();

// How far the context is filled, where the trained window ends, and how far a text has been read.
struct llama_self_extend_gauge {
    void set_props(const common_json & props);  // of the server
    void update   (const common_json & chunk);  // of a stream; shows how far a text has been read
    void clear();                               // takes that away again

    std::string prompt() const;                 // with which the user is asked

private:
    int64_t n_ctx       = 0;
    int64_t n_ctx_train = 0;
    int64_t n_used      = 0;
    int64_t ga_n        = 0;

    bool is_shown = false;
};
