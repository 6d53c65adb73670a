//! Terminals: one dialogue with the agent, both ways at once.

use dormouse_agent_protocol::{Frame, MAX_DATA, Reply, Request};
use dormouse_provider::{
    BoxStream, CommandSpec, Result, TerminalInput, TerminalOutput, TerminalSize, TerminalStream,
};
use dormouse_types::CommandId;
use futures::StreamExt as _;

use crate::agent::{AgentError, DialogueWriter};
use crate::calls::{cut_off, spawn, unexpected};
use crate::live::Live;

impl Live {
    pub(crate) async fn open_terminal(
        &self,
        spec: CommandSpec,
        size: TerminalSize,
        input: TerminalStream,
    ) -> Result<BoxStream<TerminalOutput>> {
        let spawn = spawn(self, &CommandId::generate(), &spec)?;
        let request = Request::Terminal { spawn, cols: size.cols, rows: size.rows };
        let mut dialogue = self.agent.open_new(2, request).await?;
        match dialogue.expect().await? {
            Frame::Reply(Reply::Started(_)) => {}
            other => return Err(unexpected(&other)),
        }
        let (reader, writer) = dialogue.split();
        // Ends with the output: the stream below holds it.
        let feeding = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(feed(writer, input)));
        let output = futures::stream::unfold(Some((reader, feeding)), |state| async {
            let (mut reader, feeding) = state?;
            match reader.expect().await {
                Ok(Frame::Stdout(data)) => {
                    Some((Ok(TerminalOutput::Data(data.into())), Some((reader, feeding))))
                }
                Ok(Frame::Reply(Reply::Exited(status))) => {
                    Some((Ok(TerminalOutput::Exited(status.exit_code.unwrap_or(-1))), None))
                }
                Ok(Frame::End) => None,
                Ok(other) => Some((Err(unexpected(&other)), None)),
                Err(error) => Some((Err(cut_off(error)), None)),
            }
        });
        Ok(Box::pin(output))
    }
}

/// Passes on what the user does; their going hangs up.
async fn feed(mut writer: DialogueWriter, mut input: TerminalStream) {
    let passed = async {
        while let Some(event) = input.next().await {
            match event {
                TerminalInput::Data(data) => {
                    for part in data.chunks(MAX_DATA) {
                        writer.send(&Frame::Data(part.to_vec())).await?;
                    }
                }
                TerminalInput::Resize(TerminalSize { cols, rows }) => {
                    writer.send(&Frame::Request(Request::Resize { cols, rows })).await?;
                }
            }
        }
        writer.send(&Frame::End).await
    };
    let passed: std::result::Result<(), AgentError> = passed.await;
    if let Err(error) = passed {
        tracing::debug!(%error, "terminal input");
    }
}
