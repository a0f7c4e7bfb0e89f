#pragma once

#include <memory>

struct server_response;
struct server_task_result;

//
// the end of the server: whoever waits for an answer is told, instead of being waited for
//

// The server's loop has ended, so that no answer will come.
void llama_self_extend_end_answers(server_response & results);

// What a request is answered that waits nevertheless. nullptr: the loop has not ended
std::unique_ptr<server_task_result> llama_self_extend_ended();

// A signal handler may not wait for a lock, which the thread that it interrupts may hold. The one that is returned does not: it
// leaves the work to `handler`, in a thread of its own.
using llama_self_extend_signal_handler = void (*)(int);

llama_self_extend_signal_handler llama_self_extend_outside_of_signals(llama_self_extend_signal_handler handler);
