cimport cython

from headway.state.views cimport Request


@cython.final
cdef class HashChains:
    cdef long long[::1] ids


@cython.no_gc
@cython.final
cdef class Sequence(Request):
    cdef long long output_tokens
    cdef long long generated
    cdef long long target
    cdef long long computed
    cdef long long cached
    cdef long long held
    cdef long long recomputed
    cdef long long most
    cdef int preemptions
    cdef int status
    cdef bint handoff
    cdef long long serial
    cdef long long join_step
    cdef long long finish_step
    cdef long long cross_step
    cdef long long residue
    cdef double ready_s
    cdef double keep_s
    cdef double admitted_s
    cdef double first_s
    cdef double last_s
    cdef Py_ssize_t pool
    cdef Py_ssize_t replica
    cdef Py_ssize_t source
    cdef Py_ssize_t row
    cdef HashChains chains
    cdef Py_ssize_t hash_start
    cdef Py_ssize_t hash_count
    cdef int fill(self, long long id, double arrival_s, long long prompt_tokens, long long output_tokens) except -1


@cython.final
cdef class StepHeap:
    cdef long long[::1] keys
    cdef long long[::1] serials
    cdef long long[::1] slots
    cdef list items
    cdef Py_ssize_t size
    cdef int push(self, long long key, Sequence seq) except -1
    cdef int double(self) except -1
    cdef Sequence pop(self)
    cdef Sequence take(self, Py_ssize_t at)
    cdef bint remove(self, Sequence seq) except -1
    cdef list members(self)
    cdef int put(self, Py_ssize_t at, long long key, long long serial, long long slot) noexcept
    cdef Py_ssize_t move(self, Py_ssize_t at, Py_ssize_t hole) noexcept


@cython.final
cdef class Line:
    cdef list items
    cdef Py_ssize_t head
    cdef readonly Py_ssize_t size
    cdef int append(self, Sequence seq) except -1
    cdef int append_first(self, Sequence seq) except -1
    cdef bint remove(self, Sequence seq) except -1
    cdef Sequence first(self)
    cdef Sequence take(self)
