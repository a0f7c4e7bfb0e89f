#pragma once

#include <vector>

struct common_params;
struct server_task;

//
// --keep-slots: what has been read is saved when the server ends, and there again when it starts
//

// Tasks that save the slots of a server.
std::vector<server_task> llama_self_extend_tasks_at_end(const common_params & params);

// Tasks that restore those of its model that were saved.
std::vector<server_task> llama_self_extend_tasks_at_start(const common_params & params);
