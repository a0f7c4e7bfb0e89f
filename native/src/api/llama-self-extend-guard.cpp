#include "llama-self-extend.h"

#include "ggml.h"

#include <cstdio>
#include <mutex>
#include <stdexcept>
#include <string>

//
// failed assertions as errors: loading a model, making a context and loading an adapter are calls that catch exceptions and return NULL
//

static std::mutex            guard_mutex;
static int                   guard_n = 0; // threads that are guarded
static ggml_abort_callback_t guard_abort_before;
static ggml_log_callback     guard_log_before;
static void *                guard_log_data_before;

static thread_local int         guard_depth = 0;
static thread_local std::string guard_errors;

static void on_abort(const char * message) {
    if (guard_depth > 0) {
        const std::string what = message;
        const size_t      name = what.find_last_of("/\\", what.find(':'));
        throw std::runtime_error(what.substr(name == std::string::npos ? 0 : name + 1));
    }
    if (guard_abort_before) {
        guard_abort_before(message);
    } else {
        fprintf(stderr, "%s\n", message);
    }
}

static void on_log(ggml_log_level level, const char * text, void * /*data*/) {
    if (level == GGML_LOG_LEVEL_ERROR && guard_depth > 0) {
        guard_errors += text;
    }
    if (guard_log_before) {
        guard_log_before(level, text, guard_log_data_before);
    }
}

void llama_self_extend_guard_begin(void) {
    if (guard_depth++ > 0) {
        return;
    }
    guard_errors.clear();

    const std::lock_guard<std::mutex> lock(guard_mutex);
    if (guard_n++ == 0) {
        guard_abort_before = ggml_set_abort_callback(on_abort);
        llama_log_get(&guard_log_before, &guard_log_data_before);
        llama_log_set(on_log, nullptr);
    }
}

const char * llama_self_extend_guard_end(void) {
    if (guard_depth > 0 && --guard_depth == 0) {
        const std::lock_guard<std::mutex> lock(guard_mutex);
        if (--guard_n == 0) {
            ggml_set_abort_callback(guard_abort_before);

            ggml_log_callback log;
            void *            data;
            llama_log_get(&log, &data);
            if (log == on_log) { // nobody has set another one meanwhile
                llama_log_set(guard_log_before, guard_log_data_before);
            }
        }
    }
    return guard_errors.c_str();
}
