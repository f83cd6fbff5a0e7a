from headway.state.views cimport ClusterState, PoolState, ReplicaState, Request


cdef class LiveRequest(Request):
    cdef readonly tuple chain


cdef class LiveReplica(ReplicaState):
    cdef readonly object prefixes
    cpdef long long cached_tokens(self, Request request)


cdef class LivePool(PoolState):
    pass


cdef class LiveCluster(ClusterState):
    pass
