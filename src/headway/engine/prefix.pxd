cimport cython

from headway.engine.sequence cimport HashChains


@cython.final
cdef class UnitTable:
    cdef int shift
    cdef Py_ssize_t mask
    cdef long long[::1] unit
    cdef int[::1] slot
    cdef int resize(self, int bits) except -1
    cdef Py_ssize_t home(self, long long unit) noexcept
    cdef Py_ssize_t find(self, long long unit) noexcept
    cdef int add(self, long long unit, Py_ssize_t slot) noexcept
    cdef int remove(self, long long unit) noexcept


@cython.final
cdef class PrefixCache:
    cdef UnitTable table
    cdef int bits
    cdef long long[::1] key
    cdef int[::1] refs
    cdef int[::1] newer
    cdef int[::1] older
    cdef Py_ssize_t spare
    cdef readonly long long idle
    cdef bint keeps
    cdef double[::1] until_s
    cdef double ripe_s
    cdef list kept
    cdef long long lists
    cdef Py_ssize_t lists_most
    cdef Py_ssize_t open_list
    cdef double open_until_s
    cdef Py_ssize_t match(self, HashChains chains, Py_ssize_t start, Py_ssize_t count)
    cdef Py_ssize_t pinned(self, HashChains chains, Py_ssize_t start, Py_ssize_t count)
    cdef int acquire(self, long long unit) except -1
    cdef bint release(self, long long unit) except -1
    cdef int evict(self) except -1
    cdef int keep(self, HashChains chains, Py_ssize_t start, Py_ssize_t count, double until_s) except -1
    cdef int set_aside(self) except -1
    cdef int ripen(self, double now) except -1
    cdef int evict_kept(self) except -1
    cdef Py_ssize_t list_until(self, double until_s) except -1
    cdef int drop_first_list(self) except -1
    cdef int drop_empty_lists(self) except -1
    cdef int drop_list(self, Py_ssize_t end) except -1
    cdef int unlink(self, Py_ssize_t slot) noexcept
    cdef int grow(self) except -1
    cdef Py_ssize_t new_slot(self, long long unit) except -1
    cpdef bint check_integrity(self) except -1
