cimport cython

from headway.engine.queue cimport WaitingQueue
from headway.engine.sequence cimport Sequence


@cython.final
cdef class HeldLines:
    cdef list lines
    cdef dict pool_of
    cdef list deadlines
    cdef long long serial
    cdef readonly Py_ssize_t size
    cdef readonly double next_s
    cdef WaitingQueue line(self, Py_ssize_t pool)
    cdef int join(self, Sequence seq, Py_ssize_t pool) except -1
    cdef Py_ssize_t leave(self, Sequence seq) except -1
    cdef int leave_first(self, Sequence seq, Py_ssize_t pool) except -1
    cdef Sequence most_urgent(self)
    cdef int look_ahead(self) except -1
