cimport cython

from headway.engine.core cimport Engine
from headway.policies.base cimport Policy
from headway.state.views cimport ClusterState, PoolState


@cython.final
cdef class Scaler:
    cdef readonly Policy policy
    cdef double every_s
    cdef list views
    cdef list engines
    cdef list startup_s
    cdef list first
    cdef list phase
    cdef list on_s
    cdef list powered_s
    cdef list ready_s
    cdef readonly list changes
    cdef long long asks
    cdef readonly double next_s
    cdef double due(self, double now) except? -1
    cdef bint asks_at(self, double now) except -1
    cdef int start_ready(self, double now) except -1
    cdef int ask(self, ClusterState cluster) except -1
    cdef int resize(self, Py_ssize_t pool, long long replicas, double now, str reason) except -1
    cdef int add(self, object slots, Py_ssize_t pool, double now) except -1
    cdef int remove(self, object slots, Py_ssize_t pool, double now) except -1
    cdef int look(self, Engine engine, Py_ssize_t slot, double now) except -1
    cdef int switch_off(self, Py_ssize_t slot, double now) except -1
    cpdef double powered_until(self, Py_ssize_t pool, double now) except? -1
    cdef int show_all(self) except -1
    cdef int show(self, Py_ssize_t pool) except -1
