//! Which sandbox a name of a port leads to. The host makes the connection.

use async_trait::async_trait;
use dormouse_provider::{PortConnection, PortError, PortGateway};

use crate::{Control, internal};

#[async_trait]
impl PortGateway for Control {
    async fn connect(&self, subdomain: &str, wake: bool) -> Result<PortConnection, PortError> {
        let found = self.db.route(subdomain).await.map_err(internal("read route"))?;
        let (found, port) = found.ok_or(PortError::Unknown)?;
        let (sandbox, mut run) = (found.sandbox, found.run);
        self.here(&run.host_id, || format!("sandbox {}", sandbox.name)).await?;
        self.runner.ready().await?;
        if run.status.is_ended() {
            if !wake || !sandbox.persistent {
                return Err(PortError::Stopped);
            }
            run = self.runner.resume(&sandbox.id).await?.0.run;
        }
        let live = self.runner.live(&run.id).ok_or(PortError::Stopped)?;
        let stream = live.dial(port).await?;
        Ok(PortConnection { namespace: sandbox.namespace, sandbox: sandbox.name, port, stream })
    }
}
