#include "server/llama-self-extend-http.h"

#include "json.h"

#include <cpp-httplib/httplib.h>

#include <algorithm>
#include <cctype>
#include <string>

// brackets in brackets; a chat with tools has some ten to thirty
static constexpr int DEPTH_MAX = 500;

static void answer(httplib::Response & res, int status, const char * type, const std::string & message) {
    common_json error;

    error["code"]    = status;
    error["message"] = message;
    error["type"]    = type;

    common_json body;

    body["error"] = error;

    res.status = status;
    res.set_content(body.dump_safe(), "application/json; charset=utf-8");
}

// the host of "host", "host:port" or "[address]:port", in small letters
static std::string host_of(const std::string & authority) {
    const bool is_bracketed = !authority.empty() && authority.front() == '[';

    auto res = is_bracketed ? authority.substr(1, authority.find(']') - 1) : authority.substr(0, authority.find(':'));

    std::transform(res.begin(), res.end(), res.begin(), [](unsigned char c) { return std::tolower(c); });
    return res;
}

static bool ends_with(const std::string & text, const std::string & end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

static bool is_loopback(const std::string & host) {
    return host == "localhost" || host == "127.0.0.1" || host == "::1" || ends_with(host, ".localhost");
}

// what no stranger can have a name server say: addresses, names without a dot, and the ends that are kept for local networks
static bool is_local(const std::string & host) {
    const bool is_ipv6 = host.find(':') != std::string::npos;
    const bool is_ipv4 = !host.empty() && host.find_first_not_of("0123456789.") == std::string::npos;
    const bool is_name = host.find('.') == std::string::npos;

    return is_ipv4 || is_ipv6 || is_name || is_loopback(host) || ends_with(host, ".local") || ends_with(host, ".internal") ||
           ends_with(host, ".home.arpa");
}

// who asks, if it is a page of somebody else's
static std::string stranger(const common_params & params, const std::string & origin, const std::string & host) {
    if (params.cors_origins != "localhost" || !params.api_keys.empty()) {
        return "";
    }

    const auto & own      = params.hostnames;
    const bool   is_named = std::find(own.begin(), own.end(), host_of(host)) != own.end();

    if (!host.empty() && !is_named && !is_local(host_of(host))) {
        return "the name " + host;
    }

    if (!origin.empty()) {
        const auto begin     = origin.find("://");
        const auto authority = begin == std::string::npos ? "" : origin.substr(begin + 3);

        if (authority.empty() || (authority != host && !is_loopback(host_of(authority)))) {
            return "pages of " + origin;
        }
    }

    return "";
}

bool llama_self_extend_refuse(const common_params & params, const httplib::Request & req, httplib::Response & res) {
    const auto who = stranger(params, req.get_header_value("Origin"), req.get_header_value("Host"));

    if (!who.empty()) {
        answer(res, 403, "permission_error",
            "this server does not answer to " + who + ": start it with --api-key, or with --cors-origins for pages that may come");
        return true;
    }

    if (req.get_header_value_u64("Content-Length") > CPPHTTPLIB_PAYLOAD_MAX_LENGTH) {
        answer(res, 413, "invalid_request_error",
            "the body has more than " + std::to_string(CPPHTTPLIB_PAYLOAD_MAX_LENGTH >> 20) + " MiB");
        return true;
    }

    return false;
}

bool llama_self_extend_refuse_body(const httplib::Request & req, httplib::Response & res) {
    int  depth     = 0;
    bool in_string = false;

    for (size_t i = 0; i < req.body.size(); ++i) {
        const char c = req.body[i];

        if (c == '"') {
            in_string = !in_string;
        } else if (in_string) {
            i += c == '\\'; // what follows is no end
        } else if (c == '[' || c == '{') {
            ++depth;
        } else if (c == ']' || c == '}') {
            --depth;
        }

        if (depth > DEPTH_MAX) {
            answer(res, 400, "invalid_request_error", "the body is nested more than " + std::to_string(DEPTH_MAX) + " deep");
            return true;
        }
    }

    return false;
}
