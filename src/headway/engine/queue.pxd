cimport cython

from headway.engine.sequence cimport Line, Sequence
from headway.policies.base cimport Policy


@cython.final
cdef class WaitingQueue:
    cdef Line fifo
    cdef list keyed
    cdef list fresh
    cdef Policy policy
    cdef readonly bint ordered
    cdef readonly bint rekeys
    cdef long long serial
    cdef readonly Py_ssize_t size
    cdef int push(self, Sequence seq) except -1
    cdef int push_from(self, Line news, double before_s) except -1
    cdef int push_back_in(self, Sequence seq) except -1
    cdef Sequence peek(self, double now)
    cdef int drop_head(self) except -1
    cdef bint remove(self, Sequence seq) except -1
    cdef int key_fresh(self, double now) except -1
