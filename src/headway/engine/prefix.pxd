cimport cython

from headway.engine.sequence cimport HashChains


@cython.final
cdef class PrefixCache:
    cdef dict slots
    cdef long long[::1] key
    cdef int[::1] refs
    cdef int[::1] newer
    cdef int[::1] older
    cdef list spare
    cdef readonly long long idle
    cdef long long match(self, HashChains chains, Py_ssize_t start, Py_ssize_t count)
    cdef long long pinned(self, HashChains chains, Py_ssize_t start, Py_ssize_t count)
    cdef int acquire(self, long long unit) except -1
    cdef bint release(self, long long unit) except -1
    cdef void evict(self)
    cdef void unlink(self, Py_ssize_t slot)
    cdef Py_ssize_t new_slot(self, long long unit) except -1
    cpdef bint check_integrity(self) except -1
