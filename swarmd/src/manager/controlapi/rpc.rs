//! The gRPC service `Control`: one line a call.

use swarm_proto::pb;
use swarm_proto::pb::control_server::Control;
use tonic::{Request, Response, Status};

use super::ControlApi;

type Answer<T> = Result<Response<T>, Status>;

/// Objects that a later version serves.
fn not_served<T>(what: &str) -> Answer<T> {
    Err(Status::unimplemented(format!(
        "this version does not serve {what}"
    )))
}

#[tonic::async_trait]
impl Control for ControlApi {
    async fn get_node(&self, request: Request<pb::GetNodeRequest>) -> Answer<pb::GetNodeResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.get_node_by(&r.node_id).await?))
    }

    async fn list_nodes(
        &self,
        request: Request<pb::ListNodesRequest>,
    ) -> Answer<pb::ListNodesResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.list_nodes_by(r).await?))
    }

    async fn update_node(
        &self,
        request: Request<pb::UpdateNodeRequest>,
    ) -> Answer<pb::UpdateNodeResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.update_node_by(r).await?))
    }

    async fn remove_node(
        &self,
        request: Request<pb::RemoveNodeRequest>,
    ) -> Answer<pb::RemoveNodeResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.remove_node_by(r).await?))
    }

    async fn get_task(&self, request: Request<pb::GetTaskRequest>) -> Answer<pb::GetTaskResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.get_task_by(&r.task_id).await?))
    }

    async fn list_tasks(
        &self,
        request: Request<pb::ListTasksRequest>,
    ) -> Answer<pb::ListTasksResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.list_tasks_by(r).await?))
    }

    async fn remove_task(
        &self,
        request: Request<pb::RemoveTaskRequest>,
    ) -> Answer<pb::RemoveTaskResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.remove_task_by(r).await?))
    }

    async fn get_service(
        &self,
        request: Request<pb::GetServiceRequest>,
    ) -> Answer<pb::GetServiceResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.get(&r).await?))
    }

    async fn list_services(
        &self,
        request: Request<pb::ListServicesRequest>,
    ) -> Answer<pb::ListServicesResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.list(r).await?))
    }

    async fn create_service(
        &self,
        request: Request<pb::CreateServiceRequest>,
    ) -> Answer<pb::CreateServiceResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.create(r).await?))
    }

    async fn update_service(
        &self,
        request: Request<pb::UpdateServiceRequest>,
    ) -> Answer<pb::UpdateServiceResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.update(r).await?))
    }

    async fn remove_service(
        &self,
        request: Request<pb::RemoveServiceRequest>,
    ) -> Answer<pb::RemoveServiceResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.remove(r).await?))
    }

    async fn list_service_statuses(
        &self,
        request: Request<pb::ListServiceStatusesRequest>,
    ) -> Answer<pb::ListServiceStatusesResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.statuses(&r).await?))
    }

    async fn get_network(
        &self,
        _: Request<pb::GetNetworkRequest>,
    ) -> Answer<pb::GetNetworkResponse> {
        not_served("networks")
    }

    async fn list_networks(
        &self,
        _: Request<pb::ListNetworksRequest>,
    ) -> Answer<pb::ListNetworksResponse> {
        not_served("networks")
    }

    async fn create_network(
        &self,
        _: Request<pb::CreateNetworkRequest>,
    ) -> Answer<pb::CreateNetworkResponse> {
        not_served("networks")
    }

    async fn remove_network(
        &self,
        _: Request<pb::RemoveNetworkRequest>,
    ) -> Answer<pb::RemoveNetworkResponse> {
        not_served("networks")
    }

    async fn get_cluster(
        &self,
        request: Request<pb::GetClusterRequest>,
    ) -> Answer<pb::GetClusterResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.get_cluster_by(&r.cluster_id).await?))
    }

    async fn list_clusters(
        &self,
        request: Request<pb::ListClustersRequest>,
    ) -> Answer<pb::ListClustersResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.list_clusters_by(r).await?))
    }

    async fn update_cluster(
        &self,
        request: Request<pb::UpdateClusterRequest>,
    ) -> Answer<pb::UpdateClusterResponse> {
        let r = request.into_inner();
        Ok(Response::new(self.update_cluster_by(r).await?))
    }

    async fn get_secret(&self, _: Request<pb::GetSecretRequest>) -> Answer<pb::GetSecretResponse> {
        not_served("secrets")
    }

    async fn update_secret(
        &self,
        _: Request<pb::UpdateSecretRequest>,
    ) -> Answer<pb::UpdateSecretResponse> {
        not_served("secrets")
    }

    async fn list_secrets(
        &self,
        _: Request<pb::ListSecretsRequest>,
    ) -> Answer<pb::ListSecretsResponse> {
        not_served("secrets")
    }

    async fn create_secret(
        &self,
        _: Request<pb::CreateSecretRequest>,
    ) -> Answer<pb::CreateSecretResponse> {
        not_served("secrets")
    }

    async fn remove_secret(
        &self,
        _: Request<pb::RemoveSecretRequest>,
    ) -> Answer<pb::RemoveSecretResponse> {
        not_served("secrets")
    }

    async fn get_config(&self, _: Request<pb::GetConfigRequest>) -> Answer<pb::GetConfigResponse> {
        not_served("configs")
    }

    async fn update_config(
        &self,
        _: Request<pb::UpdateConfigRequest>,
    ) -> Answer<pb::UpdateConfigResponse> {
        not_served("configs")
    }

    async fn list_configs(
        &self,
        _: Request<pb::ListConfigsRequest>,
    ) -> Answer<pb::ListConfigsResponse> {
        not_served("configs")
    }

    async fn create_config(
        &self,
        _: Request<pb::CreateConfigRequest>,
    ) -> Answer<pb::CreateConfigResponse> {
        not_served("configs")
    }

    async fn remove_config(
        &self,
        _: Request<pb::RemoveConfigRequest>,
    ) -> Answer<pb::RemoveConfigResponse> {
        not_served("configs")
    }

    async fn get_extension(
        &self,
        _: Request<pb::GetExtensionRequest>,
    ) -> Answer<pb::GetExtensionResponse> {
        not_served("extensions")
    }

    async fn create_extension(
        &self,
        _: Request<pb::CreateExtensionRequest>,
    ) -> Answer<pb::CreateExtensionResponse> {
        not_served("extensions")
    }

    async fn remove_extension(
        &self,
        _: Request<pb::RemoveExtensionRequest>,
    ) -> Answer<pb::RemoveExtensionResponse> {
        not_served("extensions")
    }

    async fn get_resource(
        &self,
        _: Request<pb::GetResourceRequest>,
    ) -> Answer<pb::GetResourceResponse> {
        not_served("resources")
    }

    async fn update_resource(
        &self,
        _: Request<pb::UpdateResourceRequest>,
    ) -> Answer<pb::UpdateResourceResponse> {
        not_served("resources")
    }

    async fn list_resources(
        &self,
        _: Request<pb::ListResourcesRequest>,
    ) -> Answer<pb::ListResourcesResponse> {
        not_served("resources")
    }

    async fn create_resource(
        &self,
        _: Request<pb::CreateResourceRequest>,
    ) -> Answer<pb::CreateResourceResponse> {
        not_served("resources")
    }

    async fn remove_resource(
        &self,
        _: Request<pb::RemoveResourceRequest>,
    ) -> Answer<pb::RemoveResourceResponse> {
        not_served("resources")
    }

    async fn create_volume(
        &self,
        _: Request<pb::CreateVolumeRequest>,
    ) -> Answer<pb::CreateVolumeResponse> {
        not_served("volumes")
    }

    async fn get_volume(&self, _: Request<pb::GetVolumeRequest>) -> Answer<pb::GetVolumeResponse> {
        not_served("volumes")
    }

    async fn update_volume(
        &self,
        _: Request<pb::UpdateVolumeRequest>,
    ) -> Answer<pb::UpdateVolumeResponse> {
        not_served("volumes")
    }

    async fn list_volumes(
        &self,
        _: Request<pb::ListVolumesRequest>,
    ) -> Answer<pb::ListVolumesResponse> {
        not_served("volumes")
    }

    async fn remove_volume(
        &self,
        _: Request<pb::RemoveVolumeRequest>,
    ) -> Answer<pb::RemoveVolumeResponse> {
        not_served("volumes")
    }
}
