#include "server/llama-self-extend-end.h"

#include "server-queue.h"
#include "server-task.h"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <thread>

#ifndef _WIN32
#  include <fcntl.h>
#  include <unistd.h>
#endif

using namespace std::chrono_literals;

static std::atomic<bool> has_ended = false;
static std::atomic<int>  n_untold  = 0; // how many of those who wait have not taken it yet

struct result_of_the_end : server_task_result_error {
    result_of_the_end() {
        err_type = ERROR_TYPE_UNAVAILABLE;
        err_msg  = "the server is shutting down";
        ++n_untold;
    }

    result_of_the_end(const result_of_the_end & other) : server_task_result_error(other) { ++n_untold; }

    ~result_of_the_end() override { --n_untold; }

    server_task_result * clone() const override { return new result_of_the_end(*this); }
};

void llama_self_extend_end_answers(server_response & results) {
    has_ended = true;
    results.broadcast(std::make_unique<result_of_the_end>());

    // What is not sent when HTTP ends is never sent. Clients that have gone, or do not read, are not waited for.
    for (const auto end = std::chrono::steady_clock::now() + 2s; n_untold > 0 && std::chrono::steady_clock::now() < end;) {
        std::this_thread::sleep_for(10ms);
    }
    std::this_thread::sleep_for(100ms);
}

std::unique_ptr<server_task_result> llama_self_extend_ended() {
    return has_ended ? std::make_unique<result_of_the_end>() : nullptr;
}

#ifdef _WIN32
llama_self_extend_signal_handler llama_self_extend_outside_of_signals(llama_self_extend_signal_handler handler) {
    return handler; // it has a thread of its own
}
#else
static int signal_pipe[2];

static void pass_on(int signal) {
    const int  before = errno;
    const char number = signal;

    if (write(signal_pipe[1], &number, 1) != 1) {
        // so many of them are waiting already that one more makes no difference
    }
    errno = before;
}

llama_self_extend_signal_handler llama_self_extend_outside_of_signals(llama_self_extend_signal_handler handler) {
    if (pipe(signal_pipe) != 0) {
        return handler;
    }
    for (int end : signal_pipe) {
        fcntl(end, F_SETFD, FD_CLOEXEC);
    }

    std::thread([handler] {
        while (true) {
            char number;

            if (read(signal_pipe[0], &number, 1) == 1) {
                handler(number);
            } else if (errno != EINTR) {
                return;
            }
        }
    }).detach();

    return pass_on;
}
#endif
