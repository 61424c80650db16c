#include "tests/bench/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

extern char** environ;

namespace whit {

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(
    const std::vector<std::string>& arguments) {
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) {
    return absl::ErrnoToStatus(errno, "socketpair");
  }

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_adddup2(&actions, sockets[1], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, sockets[1], STDOUT_FILENO);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  posix_spawnattr_setpgroup(&attributes, 0);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, argv[0], &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  close(sockets[1]);  // so that the other reads an end when the program has ended
  if (error != 0) {
    close(sockets[0]);
    return absl::ErrnoToStatus(error, absl::StrCat("cannot start ", arguments[0]));
  }

  std::unique_ptr<ChildProcess> child(new ChildProcess(pid, sockets[0], arguments[0]));
  absl::StatusOr<std::string> line = child->ReadLine();
  if (!line.ok()) return line.status();
  child->first_line_ = *std::move(line);
  kill(-pid, SIGSTOP);
  return child;
}

ChildProcess::~ChildProcess() {
  kill(-pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  close(socket_);
}

absl::StatusOr<std::string> ChildProcess::Ask(const std::string& line) {
  kill(-pid_, SIGCONT);
  const absl::Cleanup stop = [&] { kill(-pid_, SIGSTOP); };
  const std::string bytes = line + "\n";
  for (size_t sent = 0; sent < bytes.size();) {
    const ssize_t n = send(socket_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::UnavailableError(absl::StrCat(program_, " has ended"));
    sent += n;
  }
  return ReadLine();
}

absl::StatusOr<std::string> ChildProcess::ReadLine() {
  for (;;) {
    if (const size_t end = read_.find('\n'); end != std::string::npos) {
      std::string line = read_.substr(0, end);
      read_.erase(0, end + 1);
      return line;
    }
    char bytes[4096];
    const ssize_t n = recv(socket_, bytes, sizeof(bytes), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return absl::UnavailableError(absl::StrCat(program_, " has ended"));
    read_.append(bytes, n);
  }
}

}  // namespace whit
