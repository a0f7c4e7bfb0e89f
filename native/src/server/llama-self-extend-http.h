#pragma once

#include "common.h"

namespace httplib {
struct Request;
struct Response;
}

//
// which requests the server does not look at; they return whether they have answered
//

// Before the body is read: requests of strangers' pages, and bodies that are announced as longer than is taken.
//
// A page of somebody else's, open in a browser on this machine, can send requests here without anybody's doing. Browsers name
// its address in Origin; and in Host, where its name has been turned to point at this machine (DNS rebinding). Pages are not
// refused where an API key is asked for, or the user chooses the origins that may come (--cors-origins).
bool llama_self_extend_refuse(const common_params & params, const httplib::Request & req, httplib::Response & res);

// JSON is read, and made into templates and grammars, by functions that call themselves: stacks end.
bool llama_self_extend_refuse_body(const httplib::Request & req, httplib::Response & res);
