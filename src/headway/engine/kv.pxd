cimport cython

from headway.engine.law cimport StepLaw
from headway.engine.prefix cimport PrefixCache
from headway.engine.sequence cimport Sequence


@cython.final
cdef class KvPages:
    cdef readonly long long total
    cdef readonly long long used
    cdef readonly long long peak
    cdef long long block_tokens
    cdef long long window
    cdef long long window_group
    cdef long long unit_tokens
    cdef long long unit_pages
    cdef PrefixCache cache
    cdef Py_ssize_t hit(self, Sequence seq) except -1
    cdef long long pages(self, long long tokens) noexcept
    cdef Py_ssize_t price(self, Sequence seq, long long tokens) except? -1
    cdef Py_ssize_t entry_price(self, Sequence seq, long long hit) except? -1
    cdef int allocate(self, Sequence seq, long long tokens) except -1
    cdef int take(self, long long pages) except -1
    cdef int free(self, Sequence seq, long long tokens, double now, bint over) except -1
    cdef int evict_down_to(self, long long used) except -1
    cdef int forget(self) except -1
    cpdef bint check_integrity(self) except -1
