cimport cython


@cython.no_gc
cdef class Request:
    cdef readonly long long id
    cdef readonly double arrival_s
    cdef readonly long long prompt_tokens
    cdef readonly double predicted_output_tokens
    cdef readonly int priority
    cdef readonly double deadline_s
    cdef readonly int slo_class
    cdef readonly int tenant
    cdef readonly long long session
    cdef readonly int node
    cdef readonly tuple models


cdef class ReplicaState:
    cdef readonly Py_ssize_t index
    cdef readonly int node
    cdef readonly long long running
    cdef readonly long long waiting
    cdef readonly long long waiting_tokens
    cdef readonly long long context_tokens
    cdef readonly long long kv_used_blocks
    cdef readonly long long kv_total_blocks
    cpdef long long cached_tokens(self, Request request)


cdef class PoolState:
    cdef readonly str role
    cdef readonly str model
    cdef readonly double now
    cdef readonly list replicas
    cdef readonly long long held
    cdef readonly long long starting
    cdef readonly object rng


cdef class ClusterState:
    cdef readonly double now
    cdef readonly tuple pools
    cdef readonly object rng
    cpdef list entries(self, Request request)


cdef class QueueView:
    cdef readonly double now
    cdef readonly object arrival_s
    cdef readonly object prompt_tokens
    cdef readonly object predicted_output_tokens
    cdef readonly object priority
    cdef readonly object deadline_s
