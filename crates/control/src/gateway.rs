//! Which sandbox a name of a port leads to. The host makes the connection.

use async_trait::async_trait;
use dormouse_provider::{PortConnection, PortError, PortGateway, SandboxKey};

use crate::{Control, internal};

#[async_trait]
impl PortGateway for Control {
    async fn connect(&self, subdomain: &str) -> Result<PortConnection, PortError> {
        let found = self.db.route(subdomain).await.map_err(internal("read route"))?;
        let (found, port) = found.ok_or(PortError::Unknown)?;
        let (sandbox, run) = (found.sandbox, found.run);
        let key = SandboxKey { namespace: sandbox.namespace, name: sandbox.name };
        self.here(&run.host_id, || format!("sandbox {}", key.name)).await?;
        self.runner.ready().await?;
        if run.status.is_ended() {
            return Err(PortError::Stopped(sandbox.persistent.then_some(key)));
        }
        let live = self.runner.live(&run.id).ok_or(PortError::Stopped(None))?;
        let stream = live.dial(port).await?;
        Ok(PortConnection { key, port, stream })
    }
}
