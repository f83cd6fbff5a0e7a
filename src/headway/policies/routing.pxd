from headway.policies.base cimport Policy
from headway.state.decisions cimport route_to
from headway.state.views cimport PoolState, ReplicaState, Request


cdef Py_ssize_t least_loaded(PoolState pool, bint by_tokens) except -1


cdef class RoundRobin(Policy):
    cdef dict turn
    cpdef object route(self, Request request, PoolState pool)


cdef class LeastRequests(Policy):
    cpdef object route(self, Request request, PoolState pool)


cdef class WeightedRequests(Policy):
    cdef readonly dict weights
    cpdef object route(self, Request request, PoolState pool)


cdef class SameNode(Policy):
    cdef dict turn
    cpdef object route(self, Request request, PoolState pool)


cdef class LeastTokens(Policy):
    cpdef object route(self, Request request, PoolState pool)


cdef class PowerOfTwo(Policy):
    cpdef object route(self, Request request, PoolState pool)


cdef class PrefixAffinity(Policy):
    cdef readonly double token_price
    cpdef object route(self, Request request, PoolState pool)


cdef class LateBinding(Policy):
    cdef readonly long long queue
    cpdef object route(self, Request request, PoolState pool)
