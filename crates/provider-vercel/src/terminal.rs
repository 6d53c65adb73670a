//! Terminals over WebSocket (provider contract, section 10).

use std::time::Duration;

use bytes::Bytes;
use dormouse_provider::{
    BoxStream, CommandSpec, ProviderError, Result, RunRef, StdinSource, TerminalInput, TerminalOutput,
    TerminalSize, TerminalStream,
};
use dormouse_wire as wire;
use futures::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

use crate::Vercel;
use crate::transport::Call;

/// How long the connection may take.
const CONNECT: Duration = Duration::from_secs(30);

/// Events that wait for a slow reader.
const QUEUE: usize = 32;

fn text(message: &wire::TerminalMessage) -> Message {
    // Strings and numbers: their JSON cannot fail.
    Message::Text(serde_json::to_string(message).unwrap_or_default().into())
}

/// The command of the first frame. As root it is `sudo`: the frame has no
/// other word for it.
fn start(spec: CommandSpec, size: TerminalSize) -> Result<wire::TerminalMessage> {
    if spec.stdin == StdinSource::Stream || spec.timeout.is_some() {
        return Err(ProviderError::Invalid(
            "a command on a terminal has neither a time limit nor other input".to_owned(),
        ));
    }
    let mut argv = spec.argv;
    if spec.sudo {
        argv.splice(0..0, ["sudo", "--preserve-env", "--"].map(str::to_owned));
    }
    if argv.is_empty() {
        return Err(ProviderError::Invalid("the command is empty".to_owned()));
    }
    Ok(wire::TerminalMessage::Start {
        command: argv.remove(0),
        args: argv,
        env: spec.env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        cwd: spec.cwd,
        cols: Some(size.cols),
        rows: Some(size.rows),
    })
}

impl Vercel {
    pub(crate) async fn open_terminal(
        &self,
        run: &RunRef,
        spec: CommandSpec,
        size: TerminalSize,
        mut input: TerminalStream,
    ) -> Result<BoxStream<TerminalOutput>> {
        let first = start(spec, size)?;
        let subject = format!("a terminal of run {}", run.id);
        let failed = {
            let subject = subject.clone();
            move |error: String| ProviderError::internal(format!("open {subject}"), error)
        };
        let path = format!("/v2/sandboxes/sessions/{}/interactive", run.id);
        // A ticket that nobody uses does nothing.
        let call = Call::post(path, subject).json(&serde_json::json!({}))?.idempotent();
        let invited: wire::InteractiveReply = self.transport.json(&call).await?;
        let address = format!("{}?token={}", invited.url, invited.token);
        // The address stays out of errors: it carries the ticket.
        let request =
            address.into_client_request().map_err(|_| failed("its address is no URL".to_owned()))?;
        let connected = tokio::time::timeout(CONNECT, tokio_tungstenite::connect_async(request)).await;
        let (socket, _) = connected
            .map_err(|_| failed(format!("no connection within {} s", CONNECT.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        let (mut to_server, mut from_server) = socket.split();
        to_server.send(text(&first)).await.map_err(|error| failed(error.to_string()))?;
        let (shown, output) = tokio::sync::mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let typing = async {
                while let Some(event) = input.next().await {
                    let message = match event {
                        TerminalInput::Data(data) => Message::Binary(data),
                        TerminalInput::Resize(TerminalSize { cols, rows }) => {
                            text(&wire::TerminalMessage::Resize { cols, rows })
                        }
                    };
                    if to_server.send(message).await.is_err() {
                        break;
                    }
                }
                // Whoever typed hangs up; what is still shown comes.
                let _ = to_server.close().await;
                std::future::pending::<()>().await;
            };
            let showing = async {
                while let Some(message) = from_server.next().await {
                    let event = match message {
                        Ok(Message::Binary(data)) => TerminalOutput::Data(data),
                        Ok(Message::Text(frame)) => match serde_json::from_str(&frame) {
                            Ok(wire::TerminalMessage::Exit { code }) => TerminalOutput::Exited(code),
                            _ => TerminalOutput::Data(Bytes::copy_from_slice(frame.as_bytes())),
                        },
                        Ok(Message::Close(_)) => return,
                        Ok(_) => continue,
                        Err(error) => {
                            let error = ProviderError::internal("read from a terminal", error.to_string());
                            // Nobody looks any more.
                            let _ = shown.send(Err(error)).await;
                            return;
                        }
                    };
                    let last = matches!(event, TerminalOutput::Exited(_));
                    if shown.send(Ok(event)).await.is_err() || last {
                        return;
                    }
                }
            };
            tokio::select! {
                () = showing => {}
                () = typing => {}
                () = shown.closed() => {}
            }
        });
        Ok(Box::pin(tokio_stream::wrappers::ReceiverStream::new(output)))
    }
}
