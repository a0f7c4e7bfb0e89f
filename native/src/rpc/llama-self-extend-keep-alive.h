#pragma once

#ifdef _WIN32
#  include <winsock2.h>
#  include <ws2tcpip.h>
#else
#  include <netinet/in.h>
#  include <netinet/tcp.h>
#  include <sys/socket.h>
#endif

// A machine that has been switched off says nothing, and who waits for it would wait without end: TCP asks after 10 seconds of
// silence, and gives up after 40. A worker that computes for long answers, or rather its kernel does.
template<typename socket_type> void llama_self_extend_keep_alive(socket_type socket) {
    const auto set = [&](int level, int name, int value) {
        setsockopt(socket, level, name, (const char *) &value, sizeof(value)); // without it, it is as it was
    };

    set(SOL_SOCKET, SO_KEEPALIVE, 1);

#if defined(TCP_KEEPIDLE)
    set(IPPROTO_TCP, TCP_KEEPIDLE, 10);
#elif defined(TCP_KEEPALIVE) // macOS
    set(IPPROTO_TCP, TCP_KEEPALIVE, 10);
#endif
#if defined(TCP_KEEPINTVL) && defined(TCP_KEEPCNT)
    set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
    set(IPPROTO_TCP, TCP_KEEPCNT, 6);
#endif
#if defined(TCP_USER_TIMEOUT) // what has been sent, and is not acknowledged
    set(IPPROTO_TCP, TCP_USER_TIMEOUT, 40 * 1000);
#endif
}
