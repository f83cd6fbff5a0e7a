from headway.state.views cimport ClusterState, PoolState, ReplicaState, Request


cdef class StockedReplica(ReplicaState):
    cdef readonly long long stock
    cpdef long long cached_tokens(self, Request request)
