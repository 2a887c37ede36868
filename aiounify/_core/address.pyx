# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Socket addresses: the kernel's form and the socket module's.

Why it exists: the socket module converts them only on the way to its own system calls,
and the native transports and socket calls make theirs themselves.  The objects are the
ones that the socket module gives: tuples for IPv4 and IPv6, str or bytes (abstract names)
for unix sockets.  What takes more than looking at the text, a host name above all, is left
to the socket module.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy, memset, strlen

import socket


cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        unsigned short sun_family
        char sun_path[108]

cdef extern from "<arpa/inet.h>" nogil:
    const char *inet_ntop(int af, const void *src, char *dst, socklen_t size)
    int inet_pton(int af, const char *src, void *dst)
    uint16_t ntohs(uint16_t)
    uint16_t htons(uint16_t)
    uint32_t ntohl(uint32_t)
    uint32_t htonl(uint32_t)

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *) except NULL
    bytes PyUnicode_EncodeFSDefault(object)
    object PyUnicode_DecodeFSDefault(const char *)

cdef enum:
    UNIX_HEAD = 2          # bytes before the path
    FLOWINFO_MAX = 0xfffff


cdef object address_of(sockaddr_storage *name, socklen_t length):
    """The address as the socket module gives it; None if there is none."""
    cdef char[64] text
    cdef sockaddr_in *v4 = <sockaddr_in *>name
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>name
    cdef sockaddr_un *path = <sockaddr_un *>name
    cdef Py_ssize_t size = <Py_ssize_t>length - UNIX_HEAD
    if length == 0:
        return None
    if name.ss_family == AF_INET:
        inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text))
        return (text.decode(), ntohs(v4.sin_port))
    if name.ss_family == AF_INET6:
        inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text))
        host = text.decode()
        if v6.sin6_scope_id:
            # the socket module names the interface: fe80::1%eth0
            number = (host, ntohs(v6.sin6_port), 0, v6.sin6_scope_id)
            host = socket.getnameinfo(number, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
        return (host, ntohs(v6.sin6_port), ntohl(v6.sin6_flowinfo), v6.sin6_scope_id)
    if name.ss_family == AF_UNIX:
        if size <= 0:
            return ""
        if path.sun_path[0] == 0:
            return PyBytes_FromStringAndSize(path.sun_path, size)
        # the kernel ends the path with a NUL, unless it fills the whole field
        (<char *>name)[min(<Py_ssize_t>length, <Py_ssize_t>sizeof(sockaddr_storage) - 1)] = 0
        return PyUnicode_DecodeFSDefault(path.sun_path)
    return ""


cdef int parse_address(int family, object address, sockaddr_storage *name,
                       socklen_t *length) except -1:
    """Fill in an address; 0 if only the socket module can, or has to refuse it."""
    cdef sockaddr_in *v4 = <sockaddr_in *>name
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>name
    cdef Py_ssize_t n, size
    cdef const char *text
    cdef tuple parts
    if family == AF_UNIX:
        return parse_path(address, name, length)
    if type(address) is not tuple:
        return 0
    parts = <tuple>address
    n = len(parts)
    if n < 2 or type(parts[0]) is not str or not small(parts[1], 65535):
        return 0
    text = PyUnicode_AsUTF8AndSize(parts[0], &size)
    if <Py_ssize_t>strlen(text) != size:
        return 0
    if family == AF_INET and n == 2:
        memset(name, 0, sizeof(sockaddr_in))
        if inet_pton(AF_INET, text, &v4.sin_addr) != 1:
            return 0
        v4.sin_family = AF_INET
        v4.sin_port = htons(<uint16_t>parts[1])
        length[0] = sizeof(sockaddr_in)
        return 1
    if family == AF_INET6 and n <= 4:
        memset(name, 0, sizeof(sockaddr_in6))
        if inet_pton(AF_INET6, text, &v6.sin6_addr) != 1:
            return 0
        v6.sin6_family = AF_INET6
        v6.sin6_port = htons(<uint16_t>parts[1])
        if n > 2:
            if not small(parts[2], FLOWINFO_MAX):
                return 0
            v6.sin6_flowinfo = htonl(<uint32_t>parts[2])
        if n > 3:
            if not small(parts[3], 0xffffffff):
                return 0
            v6.sin6_scope_id = <uint32_t>parts[3]
        length[0] = sizeof(sockaddr_in6)
        return 1
    return 0


cdef inline bint small(object value, long long most) except -1:
    """An int from 0 to `most`, and nothing else."""
    return type(value) is int and 0 <= value <= most


cdef int parse_path(object address, sockaddr_storage *name, socklen_t *length) except -1:
    cdef sockaddr_un *un = <sockaddr_un *>name
    cdef bytes path
    cdef Py_ssize_t n
    if type(address) is bytes:
        path = <bytes>address
    elif type(address) is str:
        path = PyUnicode_EncodeFSDefault(address)
    else:
        return 0
    n = PyBytes_GET_SIZE(path)
    if n >= <Py_ssize_t>sizeof(un.sun_path):
        return 0
    memset(un, 0, sizeof(sockaddr_un))
    un.sun_family = AF_UNIX
    memcpy(un.sun_path, PyBytes_AS_STRING(path), n)
    # a path goes with its NUL, an abstract name without
    length[0] = <socklen_t>(UNIX_HEAD + n + (n > 0 and un.sun_path[0] != 0))
    return 1
